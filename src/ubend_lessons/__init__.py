"""What a course on U-Nets explains, as things to run, look at and change. Uses ubend, which never imports it."""
