//! Images against Pillow 13.0.0 and torchvision 0.29; `make_images.py` made the golden files.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use calotype_data::Error;
use calotype_data::image::text::{PngText, add_png_text};
use calotype_data::image::{DecodeOptions, Filter, PngEffort, RgbImage, RgbaImage, dimensions};
use calotype_data::npz::FeatureStatistics;
use calotype_data::transform::{Resize, Transform};
use sha2::{Digest, Sha256};
use twemoji_assets::png::PngTwemojiAsset;

const SIZES: [(usize, usize); 20] = [
    (1, 1),
    (2, 1),
    (1, 2),
    (1, 37),
    (41, 1),
    (3, 500),
    (500, 3),
    (2, 301),
    (7, 5),
    (16, 16),
    (31, 64),
    (64, 31),
    (97, 131),
    (131, 97),
    (150, 150),
    (255, 257),
    (200, 13),
    (13, 200),
    (333, 111),
    (128, 256),
];
const EMOJI: [&str; 10] = ["😀", "🍕", "🦊", "🚲", "💙", "🌈", "🏠", "⚽", "🌙", "🍎"];
const FILTERS: [Filter; 4] = [Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos3];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images")
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The same bytes as `noise` of `make_images.py`.
fn noise((width, height): (usize, usize), seed: u32) -> RgbImage {
    let byte = |i: usize| {
        let mut x = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed * 40_503);
        x ^= x >> 15;
        x = x.wrapping_mul(2_246_822_519);
        x ^= x >> 13;
        let (column, row, channel) = (i / 3 % width, i / 3 / width, i % 3);
        match (seed % 3, (x >> 22) & 3) {
            (0, 0) => 0,
            (0, 1) => 255,
            (0, _) => (x >> 24) as u8,
            (1, _) => (column * 13 + row * 7 + channel * 50) as u8,
            _ => ((column / 3 + row / 2 + channel) % 2 * 255) as u8,
        }
    };
    RgbImage::new(width, height, (0..width * height * 3).map(byte).collect()).unwrap()
}

fn digits(image: &RgbImage) -> String {
    let mut text = String::new();
    Sha256::digest(image.data()).iter().take(8).for_each(|byte| write!(text, "{byte:02x}").unwrap());
    text
}

#[test]
fn fifty_images_are_resized_as_by_pillow() {
    let mut images: Vec<RgbImage> = (0..40).map(|seed| noise(SIZES[seed as usize % 20], seed)).collect();
    for emoji in EMOJI {
        let drawing = PngTwemojiAsset::from_emoji(emoji).unwrap_or_else(|| panic!("{emoji}"));
        images.push(RgbaImage::decode(emoji, drawing).unwrap().over([255, 255, 255]));
    }
    let file = golden("resized.txt");
    let lines: Vec<&str> = std::str::from_utf8(&file).unwrap().lines().collect();
    assert_eq!((lines.len(), images.len()), (50, 50));
    for (number, (image, line)) in images.iter().zip(lines).enumerate() {
        let (w, h) = (image.width(), image.height());
        let sizes = [((w * 2 / 5).max(1), (h * 3 / 7).max(1)), (w * 7 / 3 + 1, h * 9 / 5 + 1)];
        let found: Vec<String> = FILTERS
            .iter()
            .flat_map(|filter| sizes.map(|(w, h)| digits(&image.resize(w, h, *filter).unwrap())))
            .collect();
        assert_eq!(found.join(" "), line, "image {number}, {w}x{h}");
    }
}

#[test]
fn the_centre_crop_is_torchvisions() {
    let file = golden("cropped.txt");
    for (seed, line) in std::str::from_utf8(&file).unwrap().lines().enumerate() {
        let words: Vec<&str> = line.split(' ').collect();
        let [w, h, side] = [0, 1, 2].map(|i| words[i].parse::<usize>().unwrap());
        let png = noise((w, h), seed as u32).encode_png(PngEffort::Fast).unwrap();
        let pipeline = Transform { resize: Resize::Shorter(side), ..Transform::default() }.build().unwrap();
        let (found, conditioning) = pipeline.image("x", &png, 3, 4).unwrap();
        assert_eq!(digits(&found), words[3], "{line}");
        assert_eq!((conditioning.original, conditioning.target), ((h, w), (side, side)));
    }
}

#[test]
fn every_kind_of_file_is_decoded_as_by_pillow() {
    let mut kinds = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(file) = name.strip_suffix(".rgb") else { continue };
        kinds += 1;
        let expected = golden(&name);
        let line = expected.iter().position(|b| *b == b'\n').unwrap();
        let size = std::str::from_utf8(&expected[..line]).unwrap();
        let options = DecodeOptions { orient: file.starts_with("orientation"), ..DecodeOptions::as_stored() };
        let bytes = golden(file);
        let found = RgbImage::decode_with(file, &bytes, &options).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(format!("{} {}", found.width(), found.height()), size, "{file}");
        if !options.orient {
            assert_eq!(dimensions(file, &bytes).unwrap(), (found.width(), found.height()), "{file}");
        }
        // Decoders of lossy WebP round differently; all others have to agree.
        let far = found.data().iter().zip(&expected[line + 1..]).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(far <= if file == "lossy.webp" { 4 } else { 0 }, "{file}: up to {far} levels off");
    }
    assert_eq!(kinds, 37);
}

/// What is drawn where an image is transparent: Pillow's `alpha_composite` over two backgrounds.
#[test]
fn transparent_images_are_laid_on_a_background() {
    let file = golden("composited.txt");
    let mut transparent = Vec::new();
    for line in std::str::from_utf8(&file).unwrap().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let bytes = golden(words[0]);
        let on = |background: &str| {
            let options = DecodeOptions { background: background.parse().unwrap(), ..DecodeOptions::default() };
            RgbImage::decode_noting(words[0], &bytes, &options).unwrap()
        };
        let ((white, found), (coloured, _)) = (on("white"), on("#c0ffee"));
        assert_eq!([digits(&white), digits(&coloured)], words[1..], "{line}");
        assert_eq!(RgbImage::decode("x", &bytes).unwrap(), white);
        if found.transparent {
            transparent.push(words[0].to_owned());
            assert_ne!(on("keep hidden colours").0, white, "{line}");
        }
    }
    assert_eq!(transparent.len(), 8, "{transparent:?}");
}

#[test]
fn images_are_upright_unless_asked_for_as_stored() {
    for name in ["orientation_6.jpg", "orientation_exif.png", "orientation_exif.webp", "orientation_xmp.jpg"] {
        let bytes = golden(name);
        let stored = RgbImage::decode_noting(name, &bytes, &DecodeOptions::as_stored()).unwrap();
        let upright = RgbImage::decode_noting(name, &bytes, &DecodeOptions::default()).unwrap();
        assert!(stored.1.tagged && upright.1.tagged, "{name}");
        assert_eq!(upright.1.size, (stored.1.size.1, stored.1.size.0), "{name}");
        let pipeline = Transform { resize: Resize::None, crop: None, ..Transform::default() }.build().unwrap();
        let (image, conditioning) = pipeline.image(name, &bytes, 0, 0).unwrap();
        assert_eq!(image, upright.0, "{name}");
        assert_eq!(conditioning.original, (image.height(), image.width()));
        assert!(pipeline.notes()[0].starts_with("1 image turned upright"), "{:?}", pipeline.notes());
    }
    // A damaged tag is none.
    let mut broken = golden("orientation_6.jpg");
    let at = broken.windows(4).position(|window| window == b"Exif").unwrap();
    broken[at + 14..at + 32].fill(0xff);
    let (_, found) = RgbImage::decode_noting("x", &broken, &DecodeOptions::default()).unwrap();
    assert!(!found.tagged);
}

/// ImageMagick's form of EXIF fields in PNG; Pillow 13's `exif_transpose` turns this image, too.
#[test]
fn orientation_in_a_text_of_a_png_is_applied() {
    let image = noise((20, 10), 5);
    let png = image.encode_png(PngEffort::Fast).unwrap();
    let exif = "457869660000" /* Exif */
        .to_owned()
        + "49492a0008000000"
        + "0100"
        + "12010300"
        + "01000000"
        + "06000000"
        + "00000000";
    let profile = |exif: &str| {
        let text = format!("\nexif\n{:8}\n{}\n{}\n", exif.len() / 2, &exif[..20], &exif[20..]);
        add_png_text(&png, &[PngText { keyword: "Raw profile type exif".into(), text }]).unwrap()
    };
    let decode = |bytes: &[u8]| RgbImage::decode_noting("x", bytes, &DecodeOptions::default()).unwrap();
    let (turned, found) = decode(&profile(&exif));
    assert_eq!((turned.width(), turned.height(), found.tagged), (10, 20, true));
    // Turned to the right: what was at the left is at the top.
    assert_eq!(turned.data()[..3], image.data()[9 * 20 * 3..][..3]);
    // A damaged one is none.
    for damaged in [exif.replace("49492a", "zz492a"), exif[..30].to_owned()] {
        assert!(!decode(&profile(&damaged)).1.tagged, "{damaged}");
    }
}

#[test]
fn clipped_grey_of_16_bits_is_counted() {
    let png = |level: u16| {
        let mut bytes = Vec::new();
        let pixels = image::ImageBuffer::<image::Luma<u16>, _>::from_raw(2, 1, vec![7, level]).unwrap();
        let format = image::ImageFormat::Png;
        image::DynamicImage::ImageLuma16(pixels).write_to(&mut std::io::Cursor::new(&mut bytes), format).unwrap();
        bytes
    };
    let decode = |level| RgbImage::decode_noting("x", &png(level), &DecodeOptions::default()).unwrap();
    let ((dark, of_dark), (bright, of_bright)) = (decode(255), decode(256));
    assert_eq!(dark, bright);
    assert!(!of_dark.clipped && of_bright.clipped);
}

#[test]
fn statistics_of_numpy_are_read() {
    let statistics = FeatureStatistics::from_bytes(&golden("fid.npz")).unwrap();
    assert_eq!((statistics.mean.len(), statistics.covariance.len()), (4, 16));
    assert_eq!(FeatureStatistics::from_bytes(&golden("fid_compressed.npz")).unwrap(), statistics);
    // `make_images.py --check` reads what this writes, if asked to keep it.
    if let Some(path) = std::env::var_os("CALOTYPE_KEEP_NPZ") {
        statistics.write(&PathBuf::from(path)).unwrap();
    }
}

/// Faults of images, and words of the errors that name them.
#[test]
fn malformed_images_are_named() {
    let png = noise((20, 10), 0).encode_png(PngEffort::Fast).unwrap();
    let jpeg = noise((64, 48), 1).encode_jpeg(90).unwrap();
    let edited = |file: &[u8], at: usize, bytes: &[u8]| {
        let mut file = file.to_vec();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let marker = |code: u8| jpeg.windows(2).position(|pair| pair == [0xff, code]).unwrap();
    let frame = marker(0xc0);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "none of PNG, JPEG, WebP, GIF and BMP (0 bytes)"),
        ("a page of the web", b"<html>404</html>".to_vec(), "none of PNG, JPEG, WebP, GIF and BMP"),
        ("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "with `git lfs pull`"),
        ("TIFF", b"II*\0\x08\0\0\0".to_vec(), "none of PNG, JPEG, WebP, GIF and BMP"),
        ("PNG of its signature alone", png[..8].to_vec(), ""),
        ("PNG cut in half", png[..png.len() / 2].to_vec(), ""),
        ("PNG with a wrong checksum", edited(&png, 29, &[0; 4]), ""),
        ("PNG of no width", edited(&png, 16, &[0; 4]), ""),
        ("JPEG of its start alone", jpeg[..4].to_vec(), "truncated"),
        ("JPEG without its last bytes", jpeg[..jpeg.len() - 2].to_vec(), "truncated"),
        ("JPEG cut in half", jpeg[..jpeg.len() / 2].to_vec(), "truncated"),
        ("JPEG cut in its header", jpeg[..frame + 6].to_vec(), "truncated"),
        ("JPEG of no width", edited(&jpeg, frame + 7, &[0, 0]), ""),
        ("JPEG of no height", edited(&jpeg, frame + 5, &[0, 0]), ""),
        ("JPEG of 4 billion pixels", edited(&jpeg, frame + 5, &[0xff; 4]), "more than the limit"),
        ("JPEG of 12 bits", edited(&jpeg, frame + 4, &[12]), ""),
        ("lossless JPEG", edited(&jpeg, frame + 1, &[0xc3]), ""),
        ("GIF of its signature alone", b"GIF89a".to_vec(), ""),
        ("GIF without a frame", b"GIF89a\x02\0\x02\0\0\0\0;".to_vec(), ""),
        ("WebP of its header alone", b"RIFF\x10\0\0\0WEBPVP8 ".to_vec(), ""),
        ("BMP of its signature alone", b"BM".to_vec(), ""),
        ("BMP of 4 billion columns", golden_bmp_with_width(u32::MAX), ""),
    ];
    for (name, bytes, expected) in cases {
        for error in [
            RgbImage::decode("cat-7", &bytes).map(|_| ()).expect_err(name),
            RgbaImage::decode("cat-7", &bytes).map(|_| ()).expect_err(name),
        ] {
            assert!(matches!(&error, Error::BadImage { key, .. } if key == "cat-7"), "{name}: {error}");
            assert!(error.to_string().contains(expected), "{name}: {error}");
            assert!(!error.to_string().contains('\n'), "{name}: {error}");
        }
    }
    let file = RgbImage::decode("notes.txt", b"notes").unwrap_err().of_file(Path::new("notes.txt"));
    assert!(file.to_string().starts_with("notes.txt: image cannot be used: none of PNG"), "{file}");
    let small = DecodeOptions { max_pixels: 199, ..DecodeOptions::default() };
    for bytes in [&png, &jpeg] {
        let error = RgbImage::decode_with("x", bytes, &small).unwrap_err().to_string();
        assert!(error.contains("more than the limit of 199"), "{error}");
    }
    // What follows the end of a JPEG does no harm, nor do padding bytes before a marker.
    let mut padded = jpeg.clone();
    padded.extend_from_slice(b"\0\0 trailing \xff");
    assert_eq!(RgbImage::decode("x", &padded).unwrap(), RgbImage::decode("x", &jpeg).unwrap());
}

fn golden_bmp_with_width(width: u32) -> Vec<u8> {
    let mut file = golden("plain.bmp");
    file[18..22].copy_from_slice(&width.to_le_bytes());
    file
}

#[test]
fn jpegs_are_encoded_as_by_pillow() {
    let smooth = RgbImage::decode("x", &golden("lossy.webp")).unwrap();
    for quality in [75, 95] {
        let back = RgbImage::decode("x", &smooth.encode_jpeg(quality).unwrap()).unwrap();
        let off: u32 = back.data().iter().zip(smooth.data()).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
        assert!(off < 12 * smooth.data().len() as u32, "quality {quality}: {off}");
    }
    let grey = RgbImage::decode("x", &golden("grey.jpg")).unwrap();
    assert!(grey.is_grey() && !smooth.is_grey());
    let again = RgbImage::decode("x", &grey.encode_grey_jpeg(100).unwrap()).unwrap();
    assert!(again.is_grey() && again.data().iter().zip(grey.data()).all(|(a, b)| a.abs_diff(*b) <= 3));
}

/// `make_torch_levels.py` made the lines.
#[test]
fn levels_are_resized_as_by_torch() {
    let lines = include_str!("../golden/torch_levels.txt");
    for line in lines.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [w, h, to_w, to_h] = [0, 1, 2, 3].map(|at| words[at].parse::<usize>().unwrap());
        let data = (0..w * h * 3).map(|i| ((i * 37 + i / 91 * 11) % 256) as u8).collect();
        let filter = if words[4] == "bilinear" { Filter::Bilinear } else { Filter::Bicubic };
        let found = RgbImage::new(w, h, data).unwrap().resize_as_torch(to_w, to_h, filter).unwrap();
        assert_eq!(digits(&found), words[5], "{line}");
    }
    assert_eq!(lines.lines().count(), 22);
    let image = noise((5, 4), 1);
    for (width, height, filter) in [(0, 4, Filter::Bicubic), (5, 0, Filter::Bilinear), (2, 2, Filter::Box)] {
        assert!(matches!(image.resize_as_torch(width, height, filter), Err(Error::InvalidArgument { .. })));
    }
}
