"""The truth in every layout of folders that people bring; masks are grey indices or black and white."""

import unicodedata

import numpy as np
from PIL import Image

from support.folders import CLASSES, COUNT, HEIGHT, LABELS, PARTS, WIDTH, Case, Cases, Maker

LAYOUTS = Cases()


def _add(key: str, image: str, mask: str) -> None:
    """Images and masks by their file names; {} is the number."""

    def write(make: Maker) -> None:
        make.images(image)
        make.masks(pattern=mask)

    LAYOUTS.append(Case(key, write))


# Names of the two folders, in any case, and of their files.
_add("images-masks", "images/cell_{}.png", "masks/cell_{}.png")
_add("images-masks-capitals", "IMAGES/cell_{}.png", "Masks/cell_{}.png")
_add("image-mask", "image/cell_{}.png", "mask/cell_{}.png")
_add("img-label", "img/cell_{}.png", "Label/cell_{}.png")
_add("imgs-labels", "imgs/cell_{}.png", "labels/cell_{}.png")
_add("photos-annotations", "Photos/cell_{}.png", "Annotations/cell_{}.png")
_add("photo-annotation", "photo/cell_{}.png", "annotation/cell_{}.png")
_add("images-seg", "images/cell_{}.png", "seg/cell_{}.png")
_add("image-gt", "image/cell_{}.png", "GT/cell_{}.png")
_add("x-y", "x/cell_{}.png", "y/cell_{}.png")
_add("images-trimaps", "images/cell_{}.png", "trimaps/cell_{}.png")
_add("mask-suffix", "images/cell_{}.png", "masks/cell_{}_mask.png")
_add("mask-prefix", "images/cell_{}.png", "masks/mask_cell_{}.png")
_add("own-suffix", "images/cell_{}_sat.png", "masks/cell_{}_lulc.png")
_add("upper-case-suffix", "images/cell_{}.PNG", "masks/cell_{}.Png")
_add("spaces", "my images/images/cell no {} (1).png", "my images/masks/cell no {} (1).png")
_add("dots", "images/cell.v1.{}.png", "masks/cell.v1.{}.png")
_add("nested-below", "unpacked/Some-Set/images/cell_{}.png", "unpacked/Some-Set/masks/cell_{}.png")

# One folder for both.
_add("flat-suffix", "cell_{}.jpg", "cell_{}_mask.png")
_add("flat-prefix", "cell_{}.jpg", "mask_cell_{}.png")
_add("flat-both-suffixes", "cell_{}_sat.jpg", "cell_{}_mask.png")
_add("flat-both-prefixes", "img_{}.png", "mask_{}.png")
_add("flat-own-suffix", "cell_{}.png", "cell_{}-annotated_v2.png")
_add("flat-stem", "cell_{}.jpg", "cell_{}.png")


@LAYOUTS.add()
def natural_order(make: Maker) -> None:
    for number in range(COUNT):  # 8, 9, 10, ...
        make.image(f"images/{number + 8}.png", number)
        make.save(f"masks/{number + 8}.png", make.maps[number])


def _write_parts(make: Maker, image: str, mask: str, words: tuple[str, str, str]) -> None:
    for number, part in enumerate(PARTS):
        word = words[("train", "val", "test").index(part)]
        make.image(image.format(part=word, n=number), number)
        make.save(mask.format(part=word, n=number), make.maps[number])


@LAYOUTS.add(splits=True)
def parts_outside(make: Maker) -> None:
    _write_parts(make, "{part}/images/{n}.png", "{part}/masks/{n}.png", ("train", "val", "test"))


@LAYOUTS.add(splits=True)
def parts_inside(make: Maker) -> None:
    _write_parts(make, "images/{part}/{n}.png", "masks/{part}/{n}.png", ("train", "val", "test"))


@LAYOUTS.add(splits=True)
def parts_other_words(make: Maker) -> None:
    _write_parts(make, "{part}/Imgs/{n}.png", "{part}/Labels/{n}.png", ("Training", "valid", "Testing"))


@LAYOUTS.add(splits=True)
def parts_same_names(make: Maker) -> None:
    """The files of every part are counted from 1: train/images/1.png and test/images/1.png are two images."""
    for part in ("train", "val", "test"):
        for count, number in enumerate([n for n in range(COUNT) if PARTS[n] == part], 1):
            make.image(f"{part}/images/{count}.png", number)
            make.save(f"{part}/masks/{count}.png", make.maps[number])


@LAYOUTS.add(splits=True)
def parts_flat(make: Maker) -> None:
    """DeepGlobe: train/ID_sat.jpg and train/ID_mask.png."""
    _write_parts(make, "{part}/{n}_sat.jpg", "{part}/{n}_mask.png", ("train", "valid", "test"))


@LAYOUTS.add(splits=True)
def parts_split_names(make: Maker) -> None:
    """CamVid: train/ and train_labels/."""
    _write_parts(make, "{part}/{n}.png", "{part}_labels/{n}_L.png", ("train", "val", "test"))


@LAYOUTS.add()
def sub_folders_on_both_sides(make: Maker) -> None:
    for number in range(COUNT):  # the same names in every sub-folder
        make.image(f"images/day{number // 4}/{number % 4}.png", number)
        make.save(f"masks/day{number // 4}/{number % 4}.png", make.maps[number])


@LAYOUTS.add()
def folder_per_patient(make: Maker) -> None:
    for number in range(COUNT):
        make.image(f"patient{number // 2}/images/{number % 2}.png", number)
        make.save(f"patient{number // 2}/masks/{number % 2}.png", make.maps[number])


@LAYOUTS.add(splits=True, flags={"split": "split.csv"})
def split_file(make: Maker) -> None:
    make.images()
    make.masks()
    make.text("split.csv", "file,split\n" + "".join(f"cell_{n},{part}\n" for n, part in enumerate(PARTS)))


@LAYOUTS.add(classes=CLASSES)
def classes_txt(make: Maker) -> None:
    make.images()
    make.masks()
    make.text("classes.txt", "\n".join(CLASSES))


@LAYOUTS.add(classes=CLASSES, flags={"classes": "ground,leaf,spot"})
def classes_flag(make: Maker) -> None:
    make.images()
    make.masks()


# Several masks for one image.


@LAYOUTS.add(binary=True)
def mask_per_object(make: Maker) -> None:
    """The Data Science Bowl of 2018: ID/images/ID.png, ID/masks/*.png, one black and white file per cell."""
    for number in range(COUNT):
        name = f"{number:02d}ab{number * 7919 % 1000:03x}"
        make.image(f"stage1_train/{name}/images/{name}.png", number)
        for count, thing in enumerate(make.things[number]):
            make.save(f"stage1_train/{name}/masks/{count:02d}f{number}.png", thing.draw().astype(np.uint8) * 255)


@LAYOUTS.add(classes=("background", "leaf", "spot"))
def mask_per_class_by_folder(make: Maker) -> None:
    make.images()
    for number in range(COUNT):
        for label in (1, 2):
            make.save(f"masks/{CLASSES[label]}/cell_{number}.png", (make.maps[number] == label).astype(np.uint8) * 255)


@LAYOUTS.add(classes=("background", "leaf", "spot"))
def mask_per_class_by_suffix(make: Maker) -> None:
    make.images()
    for number in range(COUNT):
        for label in (1, 2):
            make.save(f"masks/cell_{number}_{CLASSES[label]}.png", (make.maps[number] == label).astype(np.uint8) * 255)


@LAYOUTS.add(classes=("background", "leaf", "spot"))
def mask_per_class_where_there_is_one(make: Maker) -> None:
    """IDRiD: a class that an image does not show has no file."""
    make.images()
    for number in range(COUNT):
        for label in (1, 2):
            mask = (make.maps[number] == label).astype(np.uint8) * 255
            if mask.any():
                make.save(f"masks/cell_{number}_{CLASSES[label]}.png", mask)


# Told by flags.


@LAYOUTS.add(flags={"images": "shots", "masks": "drawn by hand"})
def flags_folders(make: Maker) -> None:
    make.images("shots/cell_{}.png")
    make.masks(pattern="drawn by hand/cell_{}.png")


@LAYOUTS.add(flags={"images": "raw/*/shot_*.png", "masks": "raw/*/drawn_*.png"})
def flags_globs(make: Maker) -> None:
    make.images("raw/a/shot_{}.png")
    make.masks(pattern="raw/a/drawn_{}.png")
    make.save("raw/a/thumbnail_0.png", LABELS[0])


# Published sets and tools.


@LAYOUTS.add(binary=True)
def kvasir_seg(make: Maker) -> None:
    make.images("Kvasir-SEG/Kvasir-SEG/images/cju{}.jpg")
    make.masks(lambda m: m * 255, "Kvasir-SEG/Kvasir-SEG/masks/cju{}.jpg")
    make.text("Kvasir-SEG/Kvasir-SEG/kavsir_bboxes.json", "{}")


@LAYOUTS.add(classes=("pet", "background", "contour"))
def oxford_pet(make: Maker) -> None:
    """Trimaps of 1 pet, 2 background, 3 contour; cats begin with a capital."""
    for number in range(COUNT):
        make.image(f"images/Abyssinian_{number}.jpg", number)
        make.save(f"annotations/trimaps/Abyssinian_{number}.png", make.maps[number] + 1)
        make.save(f"annotations/trimaps/._Abyssinian_{number}.png", make.maps[number])
        make.text(f"annotations/xmls/Abyssinian_{number}.xml", "<annotation/>")
    lists = {"trainval": range(6), "test": range(6, 8), "list": range(8)}
    for name, numbers in lists.items():
        make.text(f"annotations/{name}.txt", "".join(f"Abyssinian_{n} 1 1 1\n" for n in numbers))
    make.text("annotations/README", "about")


def _voc_palette() -> bytes:
    """The first colours as Pascal VOC has them: black, dark red, dark green; cream for 255."""
    table = np.zeros((256, 3), np.uint8)
    table[1], table[2], table[255] = (128, 0, 0), (0, 128, 0), (224, 224, 192)
    return table.tobytes()


@LAYOUTS.add()
def voc(make: Maker) -> None:
    """Palette images with 255 as void, and lists of train and val."""
    for number in range(COUNT):
        make.image(f"VOC2012/JPEGImages/2007_{number:06d}.jpg", number)
        make.maps[number][:2] = 255
        mask = Image.fromarray(make.maps[number])
        mask.putpalette(_voc_palette())
        make.save(f"VOC2012/SegmentationClass/2007_{number:06d}.png", mask)
        make.save(f"VOC2012/SegmentationObject/2007_{number:06d}.png", mask)
        make.text(f"VOC2012/Annotations/2007_{number:06d}.xml", "<annotation/>")
    lists = {"train": range(5), "val": range(5, 8), "trainval": range(8)}
    for name, numbers in lists.items():
        make.text(f"VOC2012/ImageSets/Segmentation/{name}.txt", "".join(f"2007_{n:06d}\n" for n in numbers))


@LAYOUTS.add(classes=("background", "leaf", "spot"))
def cvat_segmentation_mask(make: Maker) -> None:
    """CVAT's `Segmentation mask 1.1`: coloured masks, and labelmap.txt with the classes by name."""
    colors = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)], np.uint8)
    for number in range(COUNT):
        make.image(f"JPEGImages/cell_{number}.png", number)
        make.save(f"SegmentationClass/cell_{number}.png", colors[make.maps[number]])
        make.save(f"SegmentationObject/cell_{number}.png", colors[make.maps[number]])
    make.text("ImageSets/Segmentation/default.txt", "".join(f"cell_{n}\n" for n in range(COUNT)))
    make.text(
        "labelmap.txt",
        "# label:color_rgb:parts:actions\nspot:51,221,255::\nbackground:0,0,0::\nleaf:250,50,83::\n",
    )


# What does not belong to the set.


@LAYOUTS.add()
def junk(make: Maker) -> None:
    make.images()
    make.masks()
    for place in ("", "images/", "masks/"):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._cell_0.png", "notes.txt", "list.csv", "a.json"):
            make.bytes(place + name, b"\0\5\x16\7junk")
        make.bytes(place + ".ipynb_checkpoints/cell_0-checkpoint.png", b"junk")
    make.bytes("__MACOSX/images/._cell_0.png", b"junk")
    make.bytes("README.md", b"# about")
    make.bytes("train.py", b"print()")


@LAYOUTS.add()
def accents(make: Maker) -> None:
    """macOS takes accents apart, so the same name may be written in two ways."""
    name = "ảnh_tế_bào_{}.png"
    make.images("images/" + unicodedata.normalize("NFD", name))
    make.masks(pattern="masks/" + unicodedata.normalize("NFC", name))


# What no one can read with certainty.


@LAYOUTS.add(says=("without a mask", "cell_3.png"))
def image_without_mask(make: Maker) -> None:
    make.images()
    make.masks()
    (make.root / "masks/cell_3.png").unlink()


@LAYOUTS.add(says=("without an image", "cell_3.png"))
def mask_without_image(make: Maker) -> None:
    make.images()
    make.masks()
    (make.root / "images/cell_3.png").unlink()


@LAYOUTS.add(says=("cell_3.png", "cell_3.bmp"))
def two_images_of_one_name(make: Maker) -> None:
    make.images()
    make.masks()
    make.save("images/cell_3.bmp", LABELS[0])


@LAYOUTS.add(says=("images",))
def no_masks_at_all(make: Maker) -> None:
    make.images("cell_{}.png")


@LAYOUTS.add(says=("masks/cell_3.png", f"{HEIGHT}x{WIDTH}", f"{WIDTH}x{HEIGHT}"))
def mask_of_another_size(make: Maker) -> None:
    make.images()
    make.masks()
    make.save("masks/cell_3.png", make.maps[3].T)
