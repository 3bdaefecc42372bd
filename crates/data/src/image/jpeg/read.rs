//! JPEG files as Pillow reads them, to the bit: libjpeg-turbo's transform in whole numbers (`JDCT_ISLOW`), its "fancy"
//! upsampling, its conversion of colours.
//!
//! Baseline, extended and progressive files of 8 bits and Huffman codes are read, with 1, 3 or 4 components and all
//! sampling factors that divide each other. Damaged data become what libjpeg makes of them, and are told; what Pillow
//! refuses is an error. Of progressive files that lack scans, coefficients are estimated as libjpeg-turbo does.

use std::sync::Arc;

use image::error::{DecodingError, ImageError, ImageFormatHint};
use image::{ColorType, ImageDecoder, ImageFormat, ImageResult};

use super::frame::{Colour, Frame, Scan, Segments};
use super::scan::Coefficients;
use super::{colour, scan, upsample};

/// A file's fault in words.
pub(in super::super) type Result<T, E = String> = std::result::Result<T, E>;

/// A JPEG up to its first scan.
pub(in super::super) struct Jpeg<'a> {
    data: &'a [u8],
    segments: Segments<'a>,
    frame: Arc<Frame>,
    scan: Scan,
    colour: Colour,
}

impl<'a> Jpeg<'a> {
    /// Reads the head of `data`, a file from its first byte on.
    ///
    /// # Errors
    /// If it is damaged, or of a coding that is not read.
    pub(in super::super) fn open(data: &'a [u8]) -> Result<Self> {
        let mut segments = Segments::new(data);
        let scan = segments.next_scan(None)?.ok_or("the JPEG ends before its first scan")?;
        let frame = segments.frame.clone().ok_or("the JPEG has no frame")?;
        let colour = segments.colour();
        Ok(Jpeg { data, segments, frame, scan, colour })
    }

    /// Width and height as the pixels are stored.
    pub(in super::super) fn size(&self) -> (usize, usize) {
        (self.frame.width, self.frame.height)
    }

    /// The fields of its EXIF segment, without their head.
    pub(in super::super) fn exif(&self) -> Option<&'a [u8]> {
        self.segments.exif
    }

    /// Its XMP packet.
    pub(in super::super) fn xmp(&self) -> Option<&'a [u8]> {
        self.segments.xmp
    }

    /// Decodes into `out`, `[height, width, 3]`. True if data are damaged, and some pixels are what libjpeg makes of that.
    ///
    /// # Errors
    /// If the file is cut, or damaged so that Pillow refuses it.
    pub(in super::super) fn decode_into(mut self, out: &mut [u8]) -> Result<bool> {
        let ratios = upsample::ratios(&self.frame)?;
        if !self.frame.progressive {
            self.segments.enter_standard_tables();
        }
        let is_one_scan = !self.frame.progressive && self.scan.parts.len() == self.frame.components.len();
        let (planes, damaged) = match is_one_scan {
            true => scan::planes(self.data, &mut self.segments, &self.scan, &self.frame)?,
            false => Coefficients::read(self.data, &mut self.segments, self.scan, &self.frame)?,
        };
        colour::convert(&self.frame, &planes, &ratios, self.colour, out);
        Ok(damaged)
    }
}

/// With the channels that the file has: grey, or RGB.
impl ImageDecoder for Jpeg<'_> {
    fn dimensions(&self) -> (u32, u32) {
        (self.frame.width as u32, self.frame.height as u32)
    }

    fn color_type(&self) -> ColorType {
        if self.colour == Colour::Grey { ColorType::L8 } else { ColorType::Rgb8 }
    }

    fn exif_metadata(&mut self) -> ImageResult<Option<Vec<u8>>> {
        Ok(self.exif().map(<[u8]>::to_vec))
    }

    fn xmp_metadata(&mut self) -> ImageResult<Option<Vec<u8>>> {
        Ok(self.xmp().map(<[u8]>::to_vec))
    }

    fn read_image(self, out: &mut [u8]) -> ImageResult<()> {
        if self.colour != Colour::Grey {
            return self.decode_into(out).map(|_| ()).map_err(fault);
        }
        let mut pixels = vec![0; 3 * out.len()];
        self.decode_into(&mut pixels).map_err(fault)?;
        out.iter_mut().zip(pixels.as_chunks::<3>().0).for_each(|(out, pixel)| *out = pixel[0]);
        Ok(())
    }

    fn read_image_boxed(self: Box<Self>, out: &mut [u8]) -> ImageResult<()> {
        (*self).read_image(out)
    }
}

/// A fault as an error of crate `image`.
pub(in super::super) fn fault(words: String) -> ImageError {
    ImageError::Decoding(DecodingError::new(ImageFormatHint::Exact(ImageFormat::Jpeg), words))
}
