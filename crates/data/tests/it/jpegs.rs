//! JPEGs of every kind against Pillow 13.0.0 with libjpeg-turbo 3.2.0; `make_jpegs.py` made the golden files.

use std::fmt::Write as _;
use std::path::PathBuf;

use calotype_data::Error;
use calotype_data::image::{DecodeOptions, RgbImage, dimensions, jpeg_decoder};
use calotype_data::transform::{Resize, Transform};
use image::DynamicImage;
use sha2::{Digest, Sha256};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/jpeg")
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(format!("{name}.jpg"))).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn digits(pixels: &[u8]) -> String {
    let mut text = String::new();
    Sha256::digest(pixels).iter().take(8).for_each(|byte| write!(text, "{byte:02x}").unwrap());
    text
}

/// Names of the files, with the lines that say what Pillow makes of them.
fn files() -> Vec<(String, String)> {
    let lines = std::fs::read_to_string(folder().join("pixels.txt")).unwrap();
    lines.lines().map(|line| (line.split(' ').next().unwrap().to_owned(), line.to_owned())).collect()
}

#[test]
fn pixels_are_pillows() {
    let files = files();
    assert_eq!(files.len(), 59);
    let mut damaged = Vec::new();
    for (name, line) in &files {
        let bytes = golden(name);
        let (found, notes) = RgbImage::decode_noting(name, &bytes, &DecodeOptions::as_stored()).unwrap();
        assert_eq!(format!("{name} {} {} {}", found.width(), found.height(), digits(found.data())), *line);
        assert_eq!(dimensions(name, &bytes).unwrap(), notes.size, "{name}");
        let same = DynamicImage::from_decoder(jpeg_decoder(&bytes).unwrap()).unwrap();
        assert_eq!(same.as_luma8().is_some(), name == "grey_2x2", "{name}");
        assert_eq!(same.into_rgb8().into_raw(), found.data(), "{name}");
        if notes.damaged {
            damaged.push(name.as_str());
        }
    }
    // Bits of `damaged_bits` are other than they were, but all are codes.
    assert_eq!(damaged, ["damaged_restarts", "damaged_short", "damaged_progressive", "damaged_levels"]);
}

#[test]
fn damaged_data_are_told() {
    let pipeline = Transform { resize: Resize::None, crop: None, ..Transform::default() }.build().unwrap();
    pipeline.image("whole", &golden("optimised"), 0, 0).unwrap();
    assert!(pipeline.notes().is_empty(), "{:?}", pipeline.notes());
    pipeline.image("damaged", &golden("damaged_levels"), 0, 0).unwrap();
    assert!(pipeline.notes()[0].starts_with("1 image of damaged JPEG data"), "{:?}", pipeline.notes());
}

/// Where the first segment with a marker starts.
fn place(file: &[u8], marker: u8) -> usize {
    let mut at = 2;
    while file[at + 1] != marker {
        at += 2 + usize::from(u16::from_be_bytes([file[at + 2], file[at + 3]]));
    }
    at
}

fn edited(file: &[u8], edits: &[(usize, u8)]) -> Vec<u8> {
    let mut file = file.to_vec();
    edits.iter().for_each(|(at, byte)| file[*at] = *byte);
    file
}

fn inserted(file: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    [&file[..at], bytes, &file[at..]].concat()
}

/// Faults of JPEGs, and words of the errors that name them.
#[test]
fn malformed_jpegs_are_named() {
    let file = golden("optimised");
    let (frame, scan, steps, codes) = (place(&file, 0xc0), place(&file, 0xda), place(&file, 0xdb), place(&file, 0xc4));
    let edit = |edits: &[(usize, u8)]| edited(&file, edits);
    let restarts = golden("restarts");
    let interval = place(&restarts, 0xdd);
    let progressive = golden("progressive_1x1");
    let first_scan = place(&progressive, 0xda);
    let one_scan = golden("first_1_1x1");
    let start = place(&one_scan, 0xda);
    let many_scans = one_scan[start..one_scan.len() - 2].repeat(1001);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("arithmetic coding", edit(&[(frame + 1, 0xc9)]), "arithmetic coding, which is not read"),
        ("progressive arithmetic coding", edit(&[(frame + 1, 0xca)]), "arithmetic coding, which is not read"),
        ("lossless coding", edit(&[(frame + 1, 0xc3)]), "a lossless JPEG, which is not read"),
        ("hierarchical coding", edit(&[(frame + 1, 0xc5)]), "coding 0xffc5"),
        ("12 bits", edit(&[(frame + 4, 12)]), "12 bits, which is not read"),
        ("no columns", edit(&[(frame + 7, 0), (frame + 8, 0)]), "0x37 pixels"),
        ("no rows", edit(&[(frame + 5, 0), (frame + 6, 0)]), "53x0 pixels"),
        ("two components", edit(&[(frame + 9, 2)]), "2 components"),
        ("a component that is missing", edit(&[(frame + 9, 4)]), "4 components in 9 bytes"),
        ("factor 0", edit(&[(frame + 11, 0x02)]), "sampling factors 0x2"),
        ("factor 5", edit(&[(frame + 11, 0x51)]), "sampling factors 5x1"),
        ("factors 3 and 2", edit(&[(frame + 11, 0x31), (frame + 14, 0x21)]), "factors 2x1 beside 3x1"),
        ("large units", edit(&[(frame + 11, 0x44)]), "18 blocks in a unit"),
        ("steps that are missing", edit(&[(frame + 12, 3)]), "needs a table of steps 3"),
        ("steps of a high number", edit(&[(steps + 4, 5)]), "a table of steps above 3"),
        ("steps that are cut", edit(&[(steps + 4, 0x10)]), "a table of steps of the JPEG is cut"),
        ("a length of 1", edit(&[(steps + 2, 0), (steps + 3, 1)]), "a length of 1 bytes"),
        ("codes that are missing", edit(&[(scan + 6, 0x33)]), "needs a Huffman table 3 of first coefficients"),
        ("codes of class 2", edit(&[(codes + 4, 0x20)]), "a Huffman table of class 2"),
        ("codes of a high number", edit(&[(codes + 4, 0x04)]), "a Huffman table above 3"),
        ("300 codes", edit(&[(codes + 5, 0xff), (codes + 6, 45)]), "symbols"),
        ("codes that are too many", inserted(&file, scan, &too_many_codes()), "too many codes of 1 bits"),
        ("a large size", inserted(&file, scan, &large_size()), "has sizes above 15"),
        ("a component of a high number", edit(&[(scan + 5, 9)]), "a component 9 that its frame lacks"),
        ("a scan of nothing", edit(&[(scan + 4, 0)]), "0 components"),
        ("a component twice", edit(&[(scan + 7, 1)]), "a component 1 that its frame lacks"),
        ("a scan in front", [&file[..frame], &file[scan..]].concat(), "a scan before its frame"),
        ("two frames", inserted(&file, scan, &file[frame..frame + 19]), "two frames"),
        ("no scan", b"\xff\xd8\xff\xd9".to_vec(), "ends before its first scan"),
        ("a second start", inserted(&file, 2, b"\xff\xd8"), "a second JPEG starts"),
        ("a segment of no kind", inserted(&file, 2, b"\xff\x02\0\x02"), "a segment 0xff02"),
        ("a scan too many", inserted(&file, file.len() - 2, &file[scan..file.len() - 2]), "a scan behind"),
        ("an interval of three bytes", edited(&restarts, &[(interval + 3, 5)]), "interval of restarts is damaged"),
        ("a band", edited(&progressive, &[(first_scan + 11, 5)]), "coefficients 5 to 0"),
        ("bits", edited(&progressive, &[(first_scan + 13, 0x31)]), "bits 3 to 1"),
        ("1002 scans", inserted(&one_scan, start, &many_scans), "more than 1000 scans"),
        ("a cut scan", file[..file.len() - 40].to_vec(), "truncated: the JPEG has no end marker"),
        ("a cut frame", file[..frame + 6].to_vec(), "truncated: the JPEG has no end marker"),
    ];
    for (name, bytes, expected) in cases {
        let error = RgbImage::decode("cat-7", &bytes).map(|_| ()).expect_err(name);
        assert!(matches!(&error, Error::BadImage { key, .. } if key == "cat-7"), "{name}: {error}");
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

/// A table 0 of first coefficients with three codes of one bit.
fn too_many_codes() -> Vec<u8> {
    let mut segment = vec![0xff, 0xc4, 0, 22, 0x00, 3];
    segment.extend([0; 15]);
    segment.extend([1, 2, 3]);
    segment
}

/// A table 0 of first coefficients with a size of 16 bits.
fn large_size() -> Vec<u8> {
    let mut segment = vec![0xff, 0xc4, 0, 20, 0x00, 1];
    segment.extend([0; 15]);
    segment.push(16);
    segment
}

/// Any bytes are an error or pixels of the size that the file says.
#[test]
fn random_damage_does_no_harm() {
    let mut state = 1u32;
    let mut random = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    let options = DecodeOptions { max_pixels: 1 << 16, ..DecodeOptions::default() };
    let (mut good, mut bad) = (0, 0);
    for (name, _) in files() {
        let file = golden(&name);
        for _ in 0..60 {
            let mut bytes = file.clone();
            for _ in 0..=random(4) {
                let at = 2 + random(bytes.len() - 3);
                match random(4) {
                    0 => bytes[at] = 0xff,
                    1 => bytes[at] ^= 1 << random(8),
                    2 => bytes[at] = random(256) as u8,
                    _ => drop(bytes.remove(at)),
                }
            }
            match RgbImage::decode_with(&name, &bytes, &options) {
                Ok(image) => {
                    assert_eq!(image.data().len(), 3 * image.width() * image.height());
                    good += 1;
                }
                Err(error) => {
                    assert!(matches!(error, Error::BadImage { .. }), "{name}: {error}");
                    bad += 1;
                }
            }
        }
    }
    assert!(good > 500 && bad > 500, "{good} {bad}");
}
