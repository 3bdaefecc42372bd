//! Whether a JPEG file is there to its end.

/// Whether the markers of a JPEG file lead to its end mark (ITU-T T.81, annex B). Decoders accept files that are cut in
/// the middle of their data, and make up the rest.
pub(crate) fn is_whole_jpeg(bytes: &[u8]) -> bool {
    const START: u8 = 0xd8;
    const END: u8 = 0xd9;
    let mut at = 0;
    loop {
        // A marker is a byte of neither 0x00 nor 0xff after any number of 0xff. Outside of scans nothing else may
        // stand here; what does is passed by, as decoders do.
        let Some(next) = bytes.get(at..).and_then(|rest| rest.windows(2).position(is_marker)) else { return false };
        let marker = bytes[at + next + 1];
        at += next + 2;
        match marker {
            END => return true,
            // Restart marks and the start mark stand alone.
            START | 0x01 | 0xd0..=0xd7 => {}
            _ => {
                let Some(length) = bytes.get(at..at + 2) else { return false };
                // After the header of a scan its data follow, in which a marker can be told as above.
                at += usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
            }
        }
    }
}

fn is_marker(pair: &[u8]) -> bool {
    pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ExtendedColorType, ImageEncoder};

    #[test]
    fn a_jpeg_that_is_cut_anywhere_is_not_whole() {
        let mut jpeg = Vec::new();
        let pixels: Vec<u8> = (0..32 * 24 * 3).map(|i| (i * 37 % 251) as u8).collect();
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 90);
        encoder.write_image(&pixels, 32, 24, ExtendedColorType::Rgb8).unwrap();
        assert!(is_whole_jpeg(&jpeg));
        assert!(is_whole_jpeg(&[jpeg.as_slice(), b"trailing \xff bytes"].concat()));
        for length in 0..jpeg.len() {
            assert!(!is_whole_jpeg(&jpeg[..length]), "{length} of {}", jpeg.len());
        }
    }
}
