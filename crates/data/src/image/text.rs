//! Text inside PNG files: the settings an image was made with, for programs and for people.
//!
//! Chunks are those of the PNG specification (third edition, section 11.3.3): `tEXt` for ASCII, `iTXt` for other text,
//! neither compressed; compressed ones of other programs (`zTXt`, `iTXt`) are read. Web interfaces keep what they read back
//! under the keyword `parameters`.

use std::fmt;
use std::io::Read;

use flate2::read::ZlibDecoder;

use crate::{Error, Result};

/// Keyword of the chunk with all settings as JSON.
pub const SETTINGS_KEYWORD: &str = "calotype";
/// Keyword of the chunk with the settings as people and web interfaces read them: [`Parameters`].
pub const PARAMETERS_KEYWORD: &str = "parameters";

const SIGNATURE: &[u8; 8] = b"\x89PNG\r\n\x1a\n";
/// Length of signature and header chunk, which text goes behind.
const HEADER_BYTES: usize = 8 + 12 + 13;
/// Longest text that is written or read, in bytes, decompressed.
const MAX_TEXT: usize = 1 << 20;
/// Length of all texts of a file together, in bytes: many small ones may decompress to large ones.
const MAX_TEXTS: usize = 16 << 20;
/// Longest keyword, by the specification.
const MAX_KEYWORD: usize = 79;

/// One text of a PNG file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PngText {
    /// 1 to 79 characters of Latin-1.
    pub keyword: String,
    /// At most 1 MiB, without null characters.
    pub text: String,
}

/// Puts texts into a PNG file, in front of its image. Texts that it has stay.
///
/// # Errors
/// [`Error::BadImage`] if `png` is no PNG; [`Error::InvalidArgument`] for texts that the format cannot hold.
pub fn add_png_text(png: &[u8], texts: &[PngText]) -> Result<Vec<u8>> {
    let is_png = png.starts_with(SIGNATURE) && png.get(12..16) == Some(b"IHDR") && png.len() > HEADER_BYTES;
    let (header, image) = match is_png {
        true => png.split_at(HEADER_BYTES),
        false => return Err(bad("(output)", "not a PNG file")),
    };
    let mut out = header.to_vec();
    for PngText { keyword, text } in texts {
        let invalid = |detail| Error::InvalidArgument { what: "text of a PNG file", detail };
        let good_keyword =
            (1..=MAX_KEYWORD).contains(&keyword.len()) && keyword.chars().all(|c| matches!(c, ' '..='~'));
        if !good_keyword || keyword.trim() != keyword {
            return Err(invalid(format!(
                "keyword {keyword:?}; 1 to {MAX_KEYWORD} printable ASCII characters are needed"
            )));
        }
        if text.len() > MAX_TEXT || text.contains('\0') {
            let detail =
                format!("`{keyword}` has {} bytes; at most {MAX_TEXT} without null characters fit", text.len());
            return Err(invalid(detail));
        }
        // iTXt: no compression, no language, no translated keyword.
        let (kind, between): (_, &[u8]) = if text.is_ascii() { (b"tEXt", b"\0") } else { (b"iTXt", b"\0\0\0\0\0") };
        push_chunk(&mut out, kind, &[keyword.as_bytes(), between, text.as_bytes()].concat());
    }
    out.extend_from_slice(image);
    Ok(out)
}

/// The texts of a PNG file, in their order. `key` names the file in errors.
///
/// # Errors
/// [`Error::BadImage`] if `png` is no PNG, is cut off, or has a damaged or oversized text.
pub fn read_png_text(key: &str, png: &[u8]) -> Result<Vec<PngText>> {
    let mut rest = png.strip_prefix(SIGNATURE).ok_or_else(|| bad(key, "not a PNG file"))?;
    let mut texts = Vec::new();
    let mut length_of_all = 0;
    loop {
        let cut = || bad(key, "the PNG file is cut off");
        let (&length, behind) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = u32::from_be_bytes(length) as usize;
        let (body, behind) = behind.split_at_checked(length.saturating_add(4)).ok_or_else(cut)?;
        let (&sum, behind) = behind.split_first_chunk::<4>().ok_or_else(cut)?;
        let (kind, data) = body.split_at(4);
        match kind {
            b"IEND" => return Ok(texts),
            b"tEXt" | b"iTXt" | b"zTXt" => {
                if crc32fast::hash(body) != u32::from_be_bytes(sum) {
                    return Err(bad(key, "a text chunk's checksum is wrong: the file is damaged"));
                }
                let text = parse_text(kind, data).map_err(|detail| bad(key, detail))?;
                length_of_all += text.text.len();
                if length_of_all > MAX_TEXTS {
                    return Err(bad(key, format!("its texts are longer than the {MAX_TEXTS} bytes that are read")));
                }
                texts.push(text);
            }
            _ => (),
        }
        rest = behind;
    }
}

/// The first text under `keyword` in a PNG file, if there is one and it can be read: for what an image is good without.
pub(super) fn find_png_text(png: &[u8], keyword: &str) -> Option<String> {
    let mut rest = png.strip_prefix(SIGNATURE)?;
    loop {
        let (&length, behind) = rest.split_first_chunk::<4>()?;
        let (body, behind) = behind.split_at_checked((u32::from_be_bytes(length) as usize).saturating_add(4))?;
        let (kind, data) = body.split_at(4);
        let is_text = matches!(kind, b"tEXt" | b"iTXt" | b"zTXt");
        if is_text && split_null(data).is_some_and(|(name, _)| name == keyword.as_bytes()) {
            return parse_text(kind, data).ok().map(|text| text.text);
        }
        rest = behind.get(4..)?;
    }
}

fn bad(key: &str, detail: impl Into<String>) -> Error {
    Error::BadImage { key: key.to_owned(), detail: detail.into() }
}

fn push_chunk(out: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    let body = out.len();
    out.extend_from_slice(kind);
    out.extend_from_slice(data);
    let sum = crc32fast::hash(&out[body..]);
    out.extend_from_slice(&sum.to_be_bytes());
}

fn parse_text(kind: &[u8], data: &[u8]) -> std::result::Result<PngText, String> {
    let (keyword, rest) = split_null(data)
        .filter(|(keyword, _)| (1..=MAX_KEYWORD).contains(&keyword.len()))
        .ok_or("a text chunk has no keyword of 1 to 79 characters")?;
    let keyword = latin_1(keyword);
    if rest.len() > MAX_TEXT {
        return Err(format!("text `{keyword}` has {} bytes; at most {MAX_TEXT} are read", rest.len()));
    }
    let cut = || format!("text `{keyword}` is cut off");
    let text = match kind {
        b"tEXt" => latin_1(rest),
        b"zTXt" => {
            let (method, rest) = rest.split_first().ok_or_else(cut)?;
            latin_1(&inflated(&keyword, *method, rest)?)
        }
        _ => {
            let [flag, method, rest @ ..] = rest else { return Err(cut()) };
            let text = split_null(rest).and_then(|(_language, rest)| split_null(rest));
            let (_translated, text) = text.ok_or_else(cut)?;
            let text = match flag {
                0 => text.to_vec(),
                1 => inflated(&keyword, *method, text)?,
                _ => return Err(format!("text `{keyword}` has the compression flag {flag}, which is neither 0 nor 1")),
            };
            String::from_utf8(text).map_err(|_| format!("text `{keyword}` is not UTF-8"))?
        }
    };
    Ok(PngText { keyword, text })
}

/// The bytes of a compressed text.
fn inflated(keyword: &str, method: u8, data: &[u8]) -> std::result::Result<Vec<u8>, String> {
    if method != 0 {
        return Err(format!("text `{keyword}` is compressed by method {method}; 0 (zlib) is known"));
    }
    let mut text = Vec::new();
    let read = ZlibDecoder::new(data).take(MAX_TEXT as u64 + 1).read_to_end(&mut text);
    read.map_err(|error| format!("text `{keyword}` cannot be decompressed ({error})"))?;
    if text.len() > MAX_TEXT {
        return Err(format!("text `{keyword}` decompresses to more than the {MAX_TEXT} bytes that are read"));
    }
    Ok(text)
}

fn split_null(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

fn latin_1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// The settings of an image in the form that the web interfaces of Stable Diffusion write and read: the prompt, a line
/// `Negative prompt: …` if there is one, and a last line of `Name: value` pairs.
///
/// [`Parameters::to_string`] writes it, [`Parameters::parse`] reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// Text that the image should show; may have several lines.
    pub prompt: String,
    /// Text that it should not show; may be empty.
    pub negative_prompt: String,
    /// `Steps`, `Sampler`, `CFG scale`, `Seed`, `Size` (`512x768`, width first) and what else there is, in order.
    pub settings: Vec<(String, String)>,
}

const NEGATIVE: &str = "Negative prompt: ";

impl Parameters {
    /// The names that every web interface knows, with their values.
    pub fn new(
        (prompt, negative_prompt): (&str, &str),
        steps: usize,
        sampler: &str,
        guidance: f32,
        seed: u64,
        (width, height): (usize, usize),
    ) -> Self {
        let settings = [
            ("Steps", steps.to_string()),
            ("Sampler", sampler.to_owned()),
            ("CFG scale", guidance.to_string()),
            ("Seed", seed.to_string()),
            ("Size", format!("{width}x{height}")),
        ];
        Self {
            prompt: prompt.to_owned(),
            negative_prompt: negative_prompt.to_owned(),
            settings: settings.map(|(name, value)| (name.to_owned(), value)).into(),
        }
    }

    /// The value of a setting.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Width and height in pixels, if `Size` has them.
    pub fn size(&self) -> Option<(usize, usize)> {
        let (width, height) = self.get("Size")?.split_once('x')?;
        Some((width.parse().ok()?, height.parse().ok()?))
    }

    /// Takes a text apart. A last line with fewer than three settings is taken for a part of the prompt, as web
    /// interfaces do it.
    pub fn parse(text: &str) -> Self {
        let mut lines: Vec<&str> = text.trim().lines().collect();
        let settings = lines.last().map_or_else(Vec::new, |line| parse_settings(line));
        let settings = if settings.len() < 3 { Vec::new() } else { settings };
        if !settings.is_empty() {
            lines.pop();
        }
        let negative_from = lines.iter().position(|line| line.starts_with(NEGATIVE.trim_end()));
        let (prompt, negative) = lines.split_at(negative_from.unwrap_or(lines.len()));
        let negative = negative.join("\n");
        let negative_prompt = negative.strip_prefix(NEGATIVE.trim_end()).unwrap_or_default().trim().to_owned();
        Self { prompt: prompt.join("\n").trim().to_owned(), negative_prompt, settings }
    }
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prompt)?;
        if !self.negative_prompt.is_empty() {
            write!(f, "\n{NEGATIVE}{}", self.negative_prompt)?;
        }
        for (i, (name, value)) in self.settings.iter().enumerate() {
            f.write_str(if i == 0 { "\n" } else { ", " })?;
            // Values that could be taken for several settings stand in quotation marks, as in JSON.
            match value.contains([',', ':', '\n', '"']) {
                true => write!(f, "{name}: {}", serde_json::Value::from(value.as_str()))?,
                false => write!(f, "{name}: {value}")?,
            }
        }
        Ok(())
    }
}

/// `Name: value, Name: "quoted, value"`; what has no name is left out.
fn parse_settings(line: &str) -> Vec<(String, String)> {
    let (mut settings, mut rest) = (Vec::new(), line);
    while let Some((name, behind)) = rest.split_once(':') {
        let name = name.rsplit(',').next().unwrap_or(name).trim();
        let behind = behind.trim_start();
        let mut quoted = serde_json::Deserializer::from_str(behind).into_iter::<String>();
        let value = match quoted.next().filter(|_| behind.starts_with('"')) {
            Some(Ok(value)) => {
                rest = &behind[quoted.byte_offset()..];
                value
            }
            _ => {
                let (value, after) = behind.split_once(',').unwrap_or((behind, ""));
                rest = after;
                value.trim().to_owned()
            }
        };
        if !name.is_empty() {
            settings.push((name.to_owned(), value));
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{PngEffort, RgbImage};

    fn text(keyword: &str, text: &str) -> PngText {
        PngText { keyword: keyword.into(), text: text.into() }
    }

    fn image() -> (RgbImage, Vec<u8>) {
        let image = RgbImage::filled(5, 4, [1, 2, 3]).unwrap();
        let png = image.encode_png(PngEffort::Fast).unwrap();
        (image, png)
    }

    /// A PNG whose first chunk behind the header is this one.
    fn with_chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let (_, png) = image();
        let mut out = png[..HEADER_BYTES].to_vec();
        push_chunk(&mut out, kind, data);
        [&out, &png[HEADER_BYTES..]].concat()
    }

    fn deflated(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn texts_survive_and_the_image_too() {
        let (image, png) = image();
        let texts =
            [text(SETTINGS_KEYWORD, r#"{"seed": 1}"#), text(PARAMETERS_KEYWORD, "a café 🐈\nSteps: 3"), text("x", "")];
        let once = add_png_text(&png, &texts[..1]).unwrap();
        let both = add_png_text(&add_png_text(&png, &texts).unwrap(), &[]).unwrap();
        assert_eq!(read_png_text("p", &once).unwrap(), texts[..1]);
        assert_eq!(read_png_text("p", &both).unwrap(), texts);
        assert_eq!(read_png_text("p", &png).unwrap(), []);
        assert_eq!(RgbImage::decode("p", &both).unwrap(), image);
    }

    #[test]
    fn chunks_of_other_programs() {
        assert_eq!(read_png_text("p", &with_chunk(b"tEXt", b"a\0caf\xe9")).unwrap(), [text("a", "café")]);
        assert_eq!(read_png_text("p", &with_chunk(b"iTXt", b"a\0\0\0de\0b\0\xc3\xa9")).unwrap(), [text("a", "é")]);
        let compressed = [b"a\0\0".as_slice(), &deflated(b"caf\xe9")].concat();
        assert_eq!(read_png_text("p", &with_chunk(b"zTXt", &compressed)).unwrap(), [text("a", "café")]);
        let compressed = [b"a\0\x01\0de\0b\0".as_slice(), &deflated("é".as_bytes())].concat();
        assert_eq!(read_png_text("p", &with_chunk(b"iTXt", &compressed)).unwrap(), [text("a", "é")]);
    }

    #[test]
    fn bad_texts_are_refused_by_name() {
        let (_, png) = image();
        let long = "x".repeat(MAX_TEXT + 1);
        for bad in [
            text("", "x"),
            text(&"k".repeat(80), "x"),
            text("é", "x"),
            text(" k", "x"),
            text("k", "\0"),
            text("k", &long),
        ] {
            assert!(matches!(add_png_text(&png, &[bad]), Err(Error::InvalidArgument { .. })));
        }
        assert!(matches!(add_png_text(b"GIF89a", &[]), Err(Error::BadImage { .. })));
        let mut damaged = with_chunk(b"tEXt", b"a\0b");
        damaged[HEADER_BYTES + 10] ^= 1;
        let mut endless = png.clone();
        endless[HEADER_BYTES..HEADER_BYTES + 4].fill(0xff);
        let cases = [
            (b"GIF89a".to_vec(), "not a PNG"),
            (png[..png.len() - 13].to_vec(), "cut off"),
            (endless, "cut off"),
            (damaged, "checksum"),
            (with_chunk(b"tEXt", b"no null"), "keyword"),
            (with_chunk(b"tEXt", b"\0x"), "keyword"),
            (with_chunk(b"zTXt", b"a\0\0x"), "decompressed"),
            (with_chunk(b"zTXt", b"a\0"), "cut off"),
            (with_chunk(b"zTXt", &[b"a\0\x01", deflated(b"x").as_slice()].concat()), "method 1"),
            (with_chunk(b"zTXt", &[b"a\0\0", &deflated(b"xxxx")[..9]].concat()), "decompressed"),
            (with_chunk(b"zTXt", &[b"a\0\0", deflated(&vec![b'x'; MAX_TEXT + 1]).as_slice()].concat()), "more than"),
            (with_chunk(b"iTXt", b"a\0\x01\0\0\0x"), "decompressed"),
            (with_chunk(b"iTXt", b"a\0\x02\0\0\0x"), "flag 2"),
            (with_chunk(b"iTXt", &[b"a\0\x01\0\0\0", deflated(b"\xff").as_slice()].concat()), "UTF-8"),
            (with_chunk(b"iTXt", b"a\0\0\0de"), "cut off"),
            (with_chunk(b"iTXt", b"a\0\0\0\0\0\xff"), "UTF-8"),
            (with_chunk(b"tEXt", format!("a\0{long}").as_bytes()), "at most"),
        ];
        let mut many = with_chunk(b"tEXt", b"a\0b");
        let zeros = [b"a\0\0".as_slice(), &deflated(&vec![b'x'; MAX_TEXT])].concat();
        let mut chunk = Vec::new();
        push_chunk(&mut chunk, b"zTXt", &zeros);
        many.splice(HEADER_BYTES..HEADER_BYTES, chunk.repeat(1 + MAX_TEXTS / MAX_TEXT));
        let cases = cases.into_iter().chain([(many, "longer than")]);
        for (bytes, message) in cases {
            let error = read_png_text("cat.png", &bytes).unwrap_err().to_string();
            assert!(error.contains("cat.png") && error.contains(message), "{message}: {error}");
        }
    }

    #[test]
    fn parameters_are_read_as_written() {
        let mut parameters =
            Parameters::new(("a cat,\non: a mat", "blurry, \"bad\""), 20, "DPM++ 2M", 7.5, 42, (512, 768));
        let written = "a cat,\non: a mat\nNegative prompt: blurry, \"bad\"\n\
                       Steps: 20, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 42, Size: 512x768";
        assert_eq!(parameters.to_string(), written);
        assert_eq!(Parameters::parse(written), parameters);
        assert_eq!((parameters.size(), parameters.get("Seed")), (Some((512, 768)), Some("42")));
        parameters.settings.push(("Lora hashes".into(), "a: 1, \"b\": 2\n".into()));
        parameters.settings.push(("Version".into(), "1".into()));
        assert_eq!(Parameters::parse(&parameters.to_string()), parameters);
    }

    #[test]
    fn parameters_of_other_programs() {
        let parsed = Parameters::parse(
            "x\nNegative prompt: y\nz\nSteps: 2, Sampler: Euler a, Size: broken, Model hash: \"unclosed",
        );
        assert_eq!((parsed.prompt.as_str(), parsed.negative_prompt.as_str()), ("x", "y\nz"));
        assert_eq!((parsed.size(), parsed.get("Model hash")), (None, Some("\"unclosed")));
        let prompt_only = Parameters::parse("style: oil, mood: dark");
        assert_eq!(prompt_only, Parameters { prompt: "style: oil, mood: dark".into(), ..Parameters::default() });
        assert_eq!(Parameters::parse(""), Parameters::default());
    }
}
