"""Help of the options that the commands of `ubend` and of `ubend-runtime` have in common."""

from .i18n import later

OUT = later(
    "Folder for masks (class indices 0, 1, ...), overlays and shares.csv: the share (0 to 1) of each class in each "
    "image's pixels."
)
TILES = later("Tile size in pixels, at native scale; whole: no tiles  [as trained]")
OVERLAP = later("Overlap between neighbouring tiles, as a fraction of the tile.")
WITH = later("Another model, averaged with MODEL in prediction; repeatable.")
TTA = later("Test-time augmentation: average over flips, and over rotations if trained with them.")
THRESHOLD = later("CLASS is where its probability is P or more, and nowhere else; repeatable.")
MIN_AREA = later("Remove regions smaller than PX pixels; repeatable.")
FILL_HOLES = later("Fill holes of up to PX pixels (all: every hole); repeatable.")
PROB = later("Also write probabilities: as TIFF (uint8, uint16) or npz.")
RESUME = later("Skip outputs that exist already.")

# of `objects`
OBJECTS = later("Number, measure and outline the objects in the images PATHS.")
OBJECTS_OUT = later(
    "Folder for ids, outlines and tables: objects.csv (for each object: file, id, class, area_px, ...) and "
    "images.csv (for each image and class: count, mean_area_px, ...); docs/objects.md explains the columns."
)
METHOD = later(
    "How objects are separated: parts: connected components, diagonal neighbours too; distance: also cut at narrow "
    "places; contour: by a contour class  [contour or parts, by the class names]"
)
LEAST_AREA = later("Minimum object area, px.")
EXPORT = later("Also export the objects in this format; repeatable.")
PIXEL_SIZE = later("Side of a pixel, such as 0.325um; overrides the files.")
