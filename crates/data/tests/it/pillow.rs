//! Byte-for-byte comparison with Pillow 13.0.0 and NumPy 2.4; `make_golden.py` made the files.

use std::path::PathBuf;

use calotype_data::image::floats::fit_floats;
use calotype_data::image::{Filter, RgbImage, RgbaImage};
use calotype_data::npy::{NpyArray, NpyData};

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap()
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (front, back) = rest.split_at(n);
    *rest = back;
    front
}

#[test]
fn resizing_equals_pillow() {
    let file = golden("resize.bin");
    let mut rest = file.as_slice();
    let mut cases = 0;
    while !rest.is_empty() {
        let line_end = rest.iter().position(|b| *b == b'\n').unwrap() + 1;
        let line = take(&mut rest, line_end);
        let case = std::str::from_utf8(line).unwrap().trim_end().to_owned();
        let words: Vec<&str> = case.split(' ').collect();
        let [w, h, ow, oh] = [2, 3, 4, 5].map(|i| words[i].parse::<usize>().unwrap());
        let filter = match words[1] {
            "nearest" => Filter::Nearest,
            "box" => Filter::Box,
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            _ => Filter::Lanczos3,
        };
        let channels = words[0].len();
        let source = take(&mut rest, w * h * channels).to_vec();
        let expected = take(&mut rest, ow * oh * channels);
        let found = match channels {
            3 => RgbImage::new(w, h, source).unwrap().resize(ow, oh, filter).unwrap().data().to_vec(),
            _ => RgbaImage::new(w, h, source).unwrap().resize(ow, oh, filter).unwrap().data().to_vec(),
        };
        assert_eq!(found, expected, "{case}");
        cases += 1;
    }
    assert_eq!(cases, 2 * 5 * 8);
}

#[test]
fn compositing_equals_pillow() {
    let file = golden("over.bin");
    let mut rest = file.as_slice();
    let image = RgbaImage::new(16, 16, take(&mut rest, 16 * 16 * 4).to_vec()).unwrap();
    for colour in [[35, 85, 220], [255, 255, 255], [0, 0, 0]] {
        assert_eq!(image.over(colour).data(), take(&mut rest, 16 * 16 * 3), "{colour:?}");
    }
}

#[test]
fn arrays_equal_numpy() {
    let f32s = NpyArray::from_f32(&[2, 3, 4], (0..24).map(|i| i as f32 / 8.0).collect()).unwrap();
    let f16s = NpyArray::f16_from_f32(&[5], &[-2.0, -1.0, 0.0, 1.0, 2.0]).unwrap();
    let bf16s = NpyArray::bf16_from_f32(&[5], &[-2.0, -1.0, 0.0, 1.0, 2.0]).unwrap();
    let i64s = NpyArray::new(vec![], NpyData::I64(vec![-7])).unwrap();
    let arrays = [("array_f32.npy", f32s), ("array_f16.npy", f16s), ("array_bf16.npy", bf16s), ("array_i64.npy", i64s)];
    for (name, array) in arrays {
        assert_eq!(NpyArray::from_bytes(&golden(name)).unwrap(), array, "{name}");
        assert_eq!(array.to_bytes(), golden(name), "{name}");
    }
}

#[test]
fn resizing_of_floats_equals_torchvision() {
    let file = golden("torch_resize.bin");
    let mut rest = file.as_slice();
    let mut cases = 0;
    while !rest.is_empty() {
        let end = rest.iter().position(|b| *b == b'\n').unwrap();
        let line = std::str::from_utf8(take(&mut rest, end + 1)).unwrap();
        let numbers: Vec<usize> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
        let (width, height, side) = (numbers[0], numbers[1], numbers[2]);
        let levels = (0..3 * width * height).map(|i| ((i * 37 + i / 91 * 11) % 256) as u8).collect();
        let found = fit_floats(&RgbImage::new(width, height, levels).unwrap(), side).unwrap();
        let expected = take(&mut rest, 4 * 3 * side * side).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 2e-6, "{line}: {apart}");
        cases += 1;
    }
    assert_eq!(cases, 6);
}
