//! Scans: which block comes when, restarts, and the blocks of sequential files.

use super::bits::Bits;
use super::frame::{Frame, ORDER, Scan, Segments, Steps, TRUNCATED};
use super::huffman::Huffman;
use super::planes::Plane;
use super::read::Result;
use super::{idct, progressive, smooth};

/// The bits of a scan with its restarts.
struct Intervals<'a> {
    bits: Bits<'a>,
    data: &'a [u8],
    interval: usize,
    /// Units up to the next restart.
    to_go: usize,
    /// Number of the next restart marker, 0 to 7.
    next: u8,
    /// True if bits were missing, up to the next restart: units are left as they are.
    short: bool,
    damaged: bool,
    /// The last row of units that has bits.
    reached: usize,
}

impl<'a> Intervals<'a> {
    fn new(data: &'a [u8], segments: &Segments<'_>) -> Self {
        let (bits, interval) = (Bits::new(data, segments.at), segments.interval);
        Intervals { bits, data, interval, to_go: interval, next: 0, short: false, damaged: false, reached: 0 }
    }

    /// To be called before each unit, of which `row` is one: true if an interval starts with it.
    #[inline(always)]
    fn step(&mut self, row: usize) -> Result<bool> {
        if self.bits.is_short() {
            (self.short, self.damaged) = (true, true);
        }
        if !self.short {
            self.reached = row;
        }
        if self.interval == 0 {
            return Ok(false);
        }
        let restarts = self.to_go == 0;
        if restarts {
            self.restart()?;
            self.to_go = self.interval;
        }
        self.to_go -= 1;
        Ok(restarts)
    }

    #[cold]
    fn restart(&mut self) -> Result<()> {
        self.bits.align();
        if self.bits.marker.is_none() {
            self.seek_marker()?;
        }
        if self.bits.marker == Some(0xd0 + self.next) {
            self.bits.marker = None;
        } else {
            self.resynchronise()?;
        }
        self.next = (self.next + 1) % 8;
        // Up against another marker, the interval is empty.
        if self.bits.marker.is_none() {
            self.short = false;
        }
        Ok(())
    }

    fn seek_marker(&mut self) -> Result<()> {
        let mut segments = Segments::new(self.data);
        segments.at = self.bits.at;
        self.bits.marker = Some(segments.next_marker()?);
        self.bits.at = segments.at;
        Ok(())
    }

    /// What libjpeg does where another marker than the expected one stands (`jpeg_resync_to_restart`): the interval is
    /// lost if the marker is one of the next two, and what the past two start is passed over. Else it goes on as if the
    /// marker were right.
    fn resynchronise(&mut self) -> Result<()> {
        self.damaged = true;
        loop {
            let marker = self.bits.marker.unwrap_or(0xd9);
            let ahead = marker.wrapping_sub(0xd0).wrapping_sub(self.next) % 8;
            match (marker, ahead) {
                (..0xc0, _) | (0xd0..=0xd7, 6 | 7) => self.seek_marker()?,
                (..0xd0 | 0xd8.., _) | (_, 1 | 2) => return Ok(()),
                _ => {
                    self.bits.marker = None;
                    return Ok(());
                }
            }
        }
    }

    /// Where the file goes on behind the scan: `segments` are set to it. The marker that was read already, and whether
    /// data are damaged.
    fn finish(self, segments: &mut Segments<'_>) -> Result<(Option<u8>, bool)> {
        if self.bits.ended {
            return Err(TRUNCATED.to_owned());
        }
        segments.at = self.bits.at;
        Ok((self.bits.marker, self.damaged || self.bits.is_short() || self.bits.bad_code))
    }
}

/// A block of a scan.
struct Place {
    part: usize,
    component: usize,
    column: usize,
    row: usize,
    /// True if an interval starts with it.
    starts: bool,
    /// True if its bits are missing.
    short: bool,
}

/// Calls `read` for each block of a scan in its order.
#[inline(always)]
fn each_block(
    intervals: &mut Intervals<'_>,
    scan: &Scan,
    frame: &Frame,
    mut read: impl FnMut(&mut Bits<'_>, Place),
) -> Result<()> {
    // Scans of one component have units of one block, and none beyond those that count.
    let (units, factors) = match &scan.parts[..] {
        [(only, _, _)] => (frame.components[*only].blocks, vec![[1, 1]]),
        parts => (frame.units, parts.iter().map(|part| frame.components[part.0].factors).collect()),
    };
    for unit_row in 0..units[1] {
        for unit in 0..units[0] {
            let mut starts = intervals.step(unit_row)?;
            let short = intervals.short;
            for (part, [h, v]) in factors.iter().enumerate() {
                let component = scan.parts[part].0;
                for y in 0..*v {
                    for x in 0..*h {
                        let (column, row) = (unit * h + x, unit_row * v + y);
                        read(&mut intervals.bits, Place { part, component, column, row, starts, short });
                        starts = false;
                    }
                }
            }
        }
    }
    Ok(())
}

/// What a component's blocks are read with.
struct Coding<'t> {
    first: &'t Huffman,
    others: &'t Huffman,
    /// The first coefficient of the block before.
    before: i32,
}

impl Coding<'_> {
    /// Reads a block, whose coefficients are 0. True if it may have others than the first.
    #[inline(always)]
    fn read(&mut self, bits: &mut Bits<'_>, block: &mut [i16; 64]) -> bool {
        let (_, difference) = bits.run_and_number(self.first);
        self.before = self.before.wrapping_add(difference);
        block[0] = self.before as i16;
        let (mut at, mut has_others) = (1, false);
        while at < 64 {
            let (run, number) = bits.run_and_number(self.others);
            if number != 0 {
                at += run as usize;
                block[usize::from(ORDER[at] % 64)] = number as i16;
                at += 1;
                has_others = true;
            } else if run == 15 {
                at += 16;
            } else {
                break;
            }
        }
        has_others
    }
}

fn codings<'t>(segments: &'t Segments<'_>, scan: &Scan) -> Result<Vec<Coding<'t>>> {
    let coding = |(_, first, others): &(usize, usize, usize)| {
        let (first, others) = (segments.table(true, *first)?, segments.table(false, *others)?);
        Ok(Coding { first, others, before: 0 })
    };
    scan.parts.iter().map(coding).collect()
}

fn steps(segments: &Segments<'_>, frame: &Frame, component: usize) -> Result<Steps> {
    let number = frame.components[component].steps;
    let steps = segments.steps.get(number).copied().flatten();
    steps.ok_or_else(|| format!("the JPEG needs a table of steps {number}, which is not there"))
}

/// The samples of a sequential file with one scan, and whether its data are damaged.
///
/// # Errors
/// If tables are missing, the file is cut, or its rest is damaged.
pub(super) fn planes(
    data: &[u8],
    segments: &mut Segments<'_>,
    scan: &Scan,
    frame: &Frame,
) -> Result<(Vec<Plane>, bool)> {
    let mut codings = codings(segments, scan)?;
    let steps: Vec<Steps> = scan.parts.iter().map(|part| steps(segments, frame, part.0)).collect::<Result<_>>()?;
    let mut planes: Vec<Plane> = frame.components.iter().map(Plane::new).collect();
    let mut intervals = Intervals::new(data, segments);
    let mut block = [0i16; 64];
    each_block(&mut intervals, scan, frame, |bits, place| {
        if place.starts {
            codings.iter_mut().for_each(|coding| coding.before = 0);
        }
        block.fill(0);
        let has_others = !place.short && codings[place.part].read(bits, &mut block);
        let (out, stride) = planes[place.component].block_mut(place.column, place.row);
        match has_others {
            true => idct::inverse(&block, &steps[place.part], out, stride),
            false => idct::inverse_first(block[0], steps[place.part][0], out, stride),
        }
    })?;
    let (marker, damaged) = intervals.finish(segments)?;
    match segments.next_scan(marker)? {
        None => Ok((planes, damaged)),
        Some(_) => Err("the JPEG has a scan behind the one of all components".to_owned()),
    }
}

/// The coefficients of a file with several scans.
pub(super) struct Coefficients {
    /// Of each component: blocks `[rows, columns, 64]`, padded.
    blocks: Vec<Vec<i16>>,
    /// Of each component: its steps when its first scan came.
    pub(super) steps: Vec<Option<Steps>>,
    /// Of each component and coefficient, in the order of files: the lowest bit that is known, -1 if none is.
    pub(super) known: Vec<[i8; 64]>,
    /// The same before each component's last scan.
    before: Vec<[i8; 64]>,
    /// The last row of units, as interleaved scans have them, that the last scan reached.
    reached: usize,
    scans: usize,
}

/// Most scans of a file: more are no picture, but an attack on time.
const MOST_SCANS: usize = 1000;

impl Coefficients {
    /// The samples of a file whose first scan is `first`, and whether its data are damaged.
    ///
    /// # Errors
    /// If tables are missing, a scan is damaged, there are too many, or the file is cut.
    pub(super) fn read(
        data: &[u8],
        segments: &mut Segments<'_>,
        first: Scan,
        frame: &Frame,
    ) -> Result<(Vec<Plane>, bool)> {
        let count = frame.components.len();
        let blocks = frame.components.iter().map(|c| vec![0; 64 * c.padded[0] * c.padded[1]]).collect();
        let known = vec![[-1; 64]; count];
        let mut all =
            Coefficients { blocks, steps: vec![None; count], before: known.clone(), known, reached: 0, scans: 0 };
        let (mut next, mut damaged) = (Some(first), false);
        while let Some(scan) = next {
            all.scans += 1;
            if all.scans > MOST_SCANS {
                return Err(format!("the JPEG has more than {MOST_SCANS} scans"));
            }
            let (marker, is_damaged) = all.scan(data, segments, &scan, frame)?;
            damaged |= is_damaged;
            next = segments.next_scan(marker)?;
        }
        Ok((all.planes(frame), damaged))
    }

    /// Reads a scan, as [`Intervals::finish`] says of it.
    fn scan(
        &mut self,
        data: &[u8],
        segments: &mut Segments<'_>,
        scan: &Scan,
        frame: &Frame,
    ) -> Result<(Option<u8>, bool)> {
        for (component, _, _) in &scan.parts {
            if self.steps[*component].is_none() {
                self.steps[*component] = Some(steps(segments, frame, *component)?);
            }
        }
        let mut intervals = Intervals::new(data, segments);
        match frame.progressive {
            true => self.progressive(&mut intervals, segments, scan, frame)?,
            false => self.sequential(&mut intervals, segments, scan, frame)?,
        }
        self.reached = match &scan.parts[..] {
            [(only, _, _)] => intervals.reached / frame.components[*only].factors[1],
            _ => intervals.reached,
        };
        intervals.finish(segments)
    }

    fn sequential(
        &mut self,
        intervals: &mut Intervals<'_>,
        segments: &Segments<'_>,
        scan: &Scan,
        frame: &Frame,
    ) -> Result<()> {
        let mut codings = codings(segments, scan)?;
        each_block(intervals, scan, frame, |bits, place| {
            if place.starts {
                codings.iter_mut().for_each(|coding| coding.before = 0);
            }
            if !place.short {
                codings[place.part].read(bits, self.block(frame, &place));
            }
        })
    }

    fn progressive(
        &mut self,
        intervals: &mut Intervals<'_>,
        segments: &Segments<'_>,
        scan: &Scan,
        frame: &Frame,
    ) -> Result<()> {
        for (component, _, _) in &scan.parts {
            // libjpeg-turbo takes all for known before the first scan, if others follow.
            self.before[*component] = if self.scans == 1 { [0; 64] } else { self.known[*component] };
            self.known[*component][scan.band.0..=scan.band.1].fill(scan.bits.1 as i8);
        }
        let mut reader = progressive::Reader::new(segments, scan)?;
        each_block(intervals, scan, frame, |bits, place| {
            if place.starts {
                reader.start();
            }
            if !place.short {
                reader.read(bits, place.part, self.block(frame, &place));
            }
        })
    }

    #[inline(always)]
    fn block(&mut self, frame: &Frame, place: &Place) -> &mut [i16; 64] {
        let at = place.row * frame.components[place.component].padded[0] + place.column;
        &mut self.blocks[place.component].as_chunks_mut::<64>().0[at]
    }

    fn planes(mut self, frame: &Frame) -> Vec<Plane> {
        let smoothed = frame.progressive && smooth::is_useful(&self, frame);
        (0..frame.components.len()).map(|number| self.plane(frame, number, smoothed)).collect()
    }

    /// The samples of a component, whose coefficients are dropped.
    fn plane(&mut self, frame: &Frame, number: usize, smoothed: bool) -> Plane {
        let component = &frame.components[number];
        let all = std::mem::take(&mut self.blocks[number]);
        let blocks = all.as_chunks::<64>().0;
        // Without a scan there are no coefficients.
        let steps = self.steps[number].unwrap_or([0; 64]);
        let mut plane = Plane::new(component);
        for row in 0..component.blocks[1] {
            for column in 0..component.blocks[0] {
                let mut block = blocks[row * component.padded[0] + column];
                if smoothed {
                    let known = self.known_of(number, row / component.factors[1]);
                    smooth::estimate(&mut block, blocks, component, &steps, known, (column, row));
                }
                let (out, stride) = plane.block_mut(column, row);
                idct::inverse(&block, &steps, out, stride);
            }
        }
        plane
    }

    /// The bits that are known in a row of units: those that the last scan did not reach are as scans before left them.
    fn known_of(&self, component: usize, row: usize) -> &[i8; 64] {
        match (row <= self.reached, self.scans) {
            (true, _) => &self.known[component],
            (false, 1) => &[-1; 64],
            _ => &self.before[component],
        }
    }
}
