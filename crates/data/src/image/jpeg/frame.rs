//! The segments of a file: frame, tables and scans (ITU-T T.81, annex B).

use std::sync::Arc;

use super::huffman::Huffman;
use super::read::Result;
use super::write::{HUFFMAN, ZIGZAG};

/// [`ZIGZAG`]; what a damaged file says beyond the end goes to the last place.
pub(super) const ORDER: [u8; 80] = {
    let mut order = [63; 80];
    let mut at = 0;
    while at < 64 {
        order[at] = ZIGZAG[at];
        at += 1;
    }
    order
};

/// The fault of a file that ends before its end marker.
pub(in super::super) const TRUNCATED: &str = "truncated: the JPEG has no end marker";

/// Steps of the quantization, row by row.
pub(super) type Steps = [u16; 64];

pub(super) struct Component {
    id: u8,
    /// Sampling factors, columns and rows.
    pub(super) factors: [usize; 2],
    /// Number of its table of steps.
    pub(super) steps: usize,
    /// Samples that count, columns and rows.
    pub(super) size: [usize; 2],
    /// Blocks that count.
    pub(super) blocks: [usize; 2],
    /// Blocks with those that fill up the last units of interleaved scans.
    pub(super) padded: [usize; 2],
}

pub(super) struct Frame {
    pub(super) progressive: bool,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) components: Vec<Component>,
    /// The largest sampling factors.
    pub(super) largest: [usize; 2],
    /// Units of interleaved scans, columns and rows.
    pub(super) units: [usize; 2],
}

/// What a scan holds.
pub(super) struct Scan {
    /// Component, and its tables of first and other coefficients.
    pub(super) parts: Vec<(usize, usize, usize)>,
    /// First and last coefficient, in the order of the file.
    pub(super) band: (usize, usize),
    /// Bits below the ones that earlier scans held, and below the ones that this one holds.
    pub(super) bits: (u32, u32),
}

type Tables = [Option<Result<Box<Huffman>>>; 4];

/// How colours are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Grey,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

/// What the segments up to a scan say.
pub(super) struct Segments<'a> {
    data: &'a [u8],
    pub(super) at: usize,
    pub(super) frame: Option<Arc<Frame>>,
    pub(super) steps: [Option<Steps>; 4],
    pub(super) first: Tables,
    pub(super) others: Tables,
    /// Units between restarts; 0 for none.
    pub(super) interval: usize,
    pub(super) exif: Option<&'a [u8]>,
    pub(super) xmp: Option<&'a [u8]>,
    jfif: bool,
    adobe: Option<u8>,
}

impl<'a> Segments<'a> {
    /// Of a file from its first byte.
    pub(super) fn new(data: &'a [u8]) -> Self {
        Segments {
            data,
            at: 2,
            frame: None,
            steps: [None; 4],
            first: [const { None }; 4],
            others: [const { None }; 4],
            interval: 0,
            exif: None,
            xmp: None,
            jfif: false,
            adobe: None,
        }
    }

    /// Reads up to the next scan; none if the file ends before. `marker` is one that was read already.
    ///
    /// # Errors
    /// If a segment is damaged, or of a coding that is not read.
    pub(super) fn next_scan(&mut self, mut marker: Option<u8>) -> Result<Option<Scan>> {
        loop {
            let code = match marker.take() {
                Some(code) => code,
                None => self.next_marker()?,
            };
            match code {
                0xd9 => return Ok(None),
                0x01 | 0xd0..=0xd7 => {}
                0xda => {
                    let content = self.content()?;
                    return self.scan(content).map(Some);
                }
                _ => self.segment(code)?,
            }
        }
    }

    /// Skips to the next marker, and reads it.
    ///
    /// # Errors
    /// If the file ends before.
    pub(super) fn next_marker(&mut self) -> Result<u8> {
        loop {
            let rest = self.data.get(self.at..).unwrap_or_default();
            let start = rest.iter().position(|byte| *byte == 0xff).ok_or(TRUNCATED)?;
            let step = rest[start..].iter().position(|byte| *byte != 0xff).ok_or(TRUNCATED)?;
            self.at += start + step + 1;
            if rest[start + step] != 0 {
                return Ok(rest[start + step]);
            }
        }
    }

    /// The bytes of a segment behind its length.
    fn content(&mut self) -> Result<&'a [u8]> {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let length = usize::from(u16::from_be_bytes(*rest.first_chunk::<2>().ok_or(TRUNCATED)?));
        if length < 2 {
            return Err(format!("a segment of the JPEG has a length of {length} bytes"));
        }
        self.at += length;
        rest.get(2..length).ok_or_else(|| TRUNCATED.to_owned())
    }

    fn segment(&mut self, marker: u8) -> Result<()> {
        match marker {
            0xc0..=0xc2 => self.frame(marker == 0xc2),
            0xc3 => Err("a lossless JPEG, which is not read".to_owned()),
            0xc9 | 0xca => Err("a JPEG of arithmetic coding, which is not read".to_owned()),
            0xc5..=0xc7 | 0xc8 | 0xcb | 0xcd..=0xcf => {
                Err(format!("a JPEG of coding 0xff{marker:02x}, which is not read"))
            }
            0xd8 => Err("a second JPEG starts inside the JPEG".to_owned()),
            0xc4 => self.huffman(),
            0xdb => self.quantization(),
            0xdd => self.restarts(),
            0xe0 => {
                let content = self.content()?;
                self.jfif |= content.len() >= 14 && content.starts_with(b"JFIF\0");
                Ok(())
            }
            0xe1 => {
                let content = self.content()?;
                if let Some(fields) = content.strip_prefix(b"Exif\0\0") {
                    self.exif = Some(fields);
                } else if let Some(packet) = content.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
                    self.xmp = Some(packet);
                }
                Ok(())
            }
            0xee => {
                let content = self.content()?;
                if content.len() >= 12 && content.starts_with(b"Adobe") {
                    self.adobe = Some(content[11]);
                }
                Ok(())
            }
            // Tables of arithmetic coding, numbers of lines, other programs' segments, comments.
            0xcc | 0xdc | 0xde..=0xff => self.content().map(|_| ()),
            _ => Err(format!("the JPEG has a segment 0xff{marker:02x}, which no JPEG has")),
        }
    }

    fn frame(&mut self, progressive: bool) -> Result<()> {
        if self.frame.is_some() {
            return Err("the JPEG has two frames".to_owned());
        }
        let content = self.content()?;
        let Some(([bits, h0, h1, w0, w1, count], parts)) = content.split_first_chunk::<6>() else {
            return Err("the JPEG's frame is cut".to_owned());
        };
        if *bits != 8 {
            return Err(format!("a JPEG of {bits} bits, which is not read"));
        }
        if !matches!(count, 1 | 3 | 4) || parts.len() != 3 * usize::from(*count) {
            return Err(format!("a JPEG of {count} components in {} bytes; 1, 3 and 4 are read", parts.len()));
        }
        let (width, height) = (u16::from_be_bytes([*w0, *w1]).into(), u16::from_be_bytes([*h0, *h1]).into());
        let factors = |part: &[u8; 3]| [usize::from(part[1] >> 4), usize::from(part[1] & 15)];
        let parts = parts.as_chunks::<3>().0;
        if let Some([h, v]) = parts.iter().map(factors).find(|f| f.iter().any(|n| !(1..=4).contains(n))) {
            return Err(format!("the JPEG has sampling factors {h}x{v}, where each is 1 to 4"));
        }
        let largest = [0, 1].map(|axis| parts.iter().map(|part| factors(part)[axis]).max().unwrap_or(1));
        let size: [usize; 2] = [width, height];
        let units = [0, 1].map(|axis| size[axis].div_ceil(8 * largest[axis]));
        let component = |part: &[u8; 3]| {
            let factors = factors(part);
            Component {
                id: part[0],
                factors,
                steps: usize::from(part[2]),
                size: [0, 1].map(|axis| (size[axis] * factors[axis]).div_ceil(largest[axis])),
                blocks: [0, 1].map(|axis| (size[axis] * factors[axis]).div_ceil(8 * largest[axis])),
                padded: [0, 1].map(|axis| units[axis] * factors[axis]),
            }
        };
        let components = parts.iter().map(component).collect();
        self.frame = Some(Arc::new(Frame { progressive, width, height, components, largest, units }));
        Ok(())
    }

    fn quantization(&mut self) -> Result<()> {
        let mut content = self.content()?;
        while let Some((head, rest)) = content.split_first() {
            let bytes = if head >> 4 == 0 { 64 } else { 128 };
            let place = self.steps.get_mut(usize::from(head & 15)).ok_or("the JPEG has a table of steps above 3")?;
            let (numbers, rest) = rest.split_at_checked(bytes).ok_or("a table of steps of the JPEG is cut")?;
            content = rest;
            let mut steps = [0; 64];
            for (at, step) in ORDER[..64].iter().enumerate() {
                steps[usize::from(*step)] = match bytes {
                    64 => numbers[at].into(),
                    _ => u16::from_be_bytes([numbers[2 * at], numbers[2 * at + 1]]),
                };
            }
            *place = Some(steps);
        }
        Ok(())
    }

    fn huffman(&mut self) -> Result<()> {
        const CUT: &str = "a Huffman table of the JPEG is cut";
        let mut content = self.content()?;
        while let Some((head, rest)) = content.split_first() {
            let (lengths, rest) = rest.split_first_chunk::<16>().ok_or(CUT)?;
            let count: usize = lengths.iter().map(|n| usize::from(*n)).sum();
            if count > 256 {
                return Err(format!("a Huffman table of the JPEG has {count} symbols"));
            }
            let (symbols, rest) = rest.split_at_checked(count).ok_or(CUT)?;
            content = rest;
            let tables = match head >> 4 {
                0 => &mut self.first,
                1 => &mut self.others,
                class => return Err(format!("the JPEG has a Huffman table of class {class}")),
            };
            let place = tables.get_mut(usize::from(head & 15)).ok_or("the JPEG has a Huffman table above 3")?;
            // Faults count once a scan uses it.
            *place = Some(Huffman::new(lengths, symbols, head >> 4 == 0));
        }
        Ok(())
    }

    fn restarts(&mut self) -> Result<()> {
        let content = self.content()?;
        let interval: &[u8; 2] = content.try_into().map_err(|_| "the JPEG's interval of restarts is damaged")?;
        self.interval = u16::from_be_bytes(*interval).into();
        Ok(())
    }

    fn scan(&self, content: &[u8]) -> Result<Scan> {
        let frame = self.frame.as_ref().ok_or("the JPEG has a scan before its frame")?;
        let count = usize::from(*content.first().ok_or("a scan of the JPEG has no head")?);
        if !(1..=4).contains(&count) || content.len() != 2 * count + 4 {
            return Err(format!("a scan of the JPEG has {count} components in {} bytes", content.len()));
        }
        let mut parts: Vec<(usize, usize, usize)> = Vec::new();
        for [id, tables] in content[1..=2 * count].as_chunks::<2>().0 {
            // Of components with the same number, libjpeg takes one after the other.
            let is_free = |place: usize| parts.iter().all(|part| part.0 != place);
            let found = frame.components.iter().enumerate().position(|(place, c)| c.id == *id && is_free(place));
            let component =
                found.ok_or_else(|| format!("a scan of the JPEG has a component {id} that its frame lacks"))?;
            parts.push((component, usize::from(tables >> 4), usize::from(tables & 15)));
        }
        let blocks: usize = parts.iter().map(|part| frame.components[part.0].factors.iter().product::<usize>()).sum();
        if count > 1 && blocks > 10 {
            return Err(format!("a scan of the JPEG has {blocks} blocks in a unit, where 10 are the most"));
        }
        let [start, end, bits] = [0, 1, 2].map(|i| usize::from(content[2 * count + 1 + i]));
        let scan = Scan { parts, band: (start, end), bits: (bits as u32 >> 4, bits as u32 & 15) };
        if frame.progressive {
            scan.check_progression()?;
        }
        Ok(scan)
    }

    /// How colours are stored, as libjpeg guesses it.
    pub(super) fn colour(&self) -> Colour {
        let components = self.frame.as_deref().map_or(&[][..], |frame| &frame.components);
        let ids: Vec<u8> = components.iter().map(|component| component.id).collect();
        match (ids.len(), self.adobe) {
            (..=1, _) => Colour::Grey,
            (4.., Some(0) | None) => Colour::Cmyk,
            (4.., Some(_)) => Colour::Ycck,
            (_, Some(0)) if !self.jfif => Colour::Rgb,
            (_, None) if !self.jfif && ids == *b"RGB" => Colour::Rgb,
            _ => Colour::YCbCr,
        }
    }

    /// The Huffman table `number` of first coefficients or of others.
    ///
    /// # Errors
    /// If it is not there, or faulty.
    pub(super) fn table(&self, first: bool, number: usize) -> Result<&Huffman> {
        let tables = if first { &self.first } else { &self.others };
        let kind = if first { "first coefficients" } else { "coefficients" };
        match tables.get(number) {
            Some(Some(Ok(table))) => Ok(table),
            Some(Some(Err(fault))) => Err(fault.clone()),
            _ => Err(format!("a scan of the JPEG needs a Huffman table {number} of {kind}, which is not there")),
        }
    }

    /// Enters the standard's tables (K.3 to K.6) where the file has none, as frames of films have.
    pub(super) fn enter_standard_tables(&mut self) {
        for table in &HUFFMAN {
            let is_first = table.class >> 4 == 0;
            let tables = if is_first { &mut self.first } else { &mut self.others };
            tables[usize::from(table.class & 15)]
                .get_or_insert_with(|| Huffman::new(&table.lengths, table.symbols, is_first));
        }
    }
}

impl Scan {
    fn check_progression(&self) -> Result<()> {
        let ((start, end), (high, low)) = (self.band, self.bits);
        let band = if start == 0 { end == 0 } else { start <= end && end < 64 && self.parts.len() == 1 };
        if !band || low > 13 || high != 0 && high != low + 1 {
            return Err(format!("a scan of the JPEG has coefficients {start} to {end}, bits {high} to {low}"));
        }
        Ok(())
    }
}
