//! EXIF fields as text, in the manner of the library that img2dataset uses.

use std::fmt::Display;
use std::io::Cursor;

use exif::{Context, Field, In, Reader, Tag, Value};
use serde_json::{Map, Value as Json};

/// Values of a field that are written out; longer fields are binary data of the camera's maker.
const VALUES: usize = 50;

/// The EXIF fields of an image (JPEG, PNG, WebP) as a JSON object in text: `{"Image Make": "...", ...}`, names as
/// ExifRead's, sorted; values as they are stored, not their meanings. An image without any gives `{}`. Of an image that was
/// turned `upright`, the orientation is left out.
pub fn exif_text(bytes: &[u8], upright: bool) -> String {
    let mut fields = match Reader::new().continue_on_error(true).read_from_container(&mut Cursor::new(bytes)) {
        Ok(found) => object(found.fields()),
        Err(exif::Error::PartialResult(partial)) => object(partial.into_inner().0.fields()),
        Err(_) => Map::new(),
    };
    if upright {
        fields.remove("Image Orientation");
    }
    Json::Object(fields).to_string()
}

fn object<'a>(fields: impl Iterator<Item = &'a Field>) -> Map<String, Json> {
    fields.map(|field| (name(field), Json::String(text(&field.value)))).collect()
}

fn name(field: &Field) -> String {
    let group = match field.tag.context() {
        Context::Tiff if field.ifd_num == In::THUMBNAIL => "Thumbnail",
        Context::Tiff => "Image",
        Context::Exif => "EXIF",
        Context::Gps => "GPS",
        Context::Interop => "Interoperability",
        _ => "Other",
    };
    match field.tag.description() {
        // The name until Exif 2.3.
        Some(_) if field.tag == Tag::PhotographicSensitivity => format!("{group} ISOSpeedRatings"),
        Some(_) => format!("{group} {}", field.tag),
        None => format!("{group} Tag 0x{:04X}", field.tag.number()),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Ascii(lines) => {
            let lines: Vec<_> = lines.iter().map(|line| String::from_utf8_lossy(line)).collect();
            lines.join(" ").trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_owned()
        }
        Value::Undefined(bytes, _) if bytes.iter().all(|byte| (32..127).contains(byte)) => {
            String::from_utf8_lossy(bytes).trim().to_owned()
        }
        Value::Byte(all) | Value::Undefined(all, _) => list(all.iter()),
        Value::Short(all) => list(all.iter()),
        Value::Long(all) => list(all.iter()),
        Value::SByte(all) => list(all.iter()),
        Value::SShort(all) => list(all.iter()),
        Value::SLong(all) => list(all.iter()),
        Value::Float(all) => list(all.iter()),
        Value::Double(all) => list(all.iter()),
        Value::Rational(all) => list(all.iter().map(|r| ratio(i64::from(r.num), i64::from(r.denom)))),
        Value::SRational(all) => list(all.iter().map(|r| ratio(i64::from(r.num), i64::from(r.denom)))),
        Value::Unknown(..) => String::new(),
    }
}

/// One value as it is, several as `[1, 2, 3]`.
fn list(values: impl ExactSizeIterator<Item = impl Display>) -> String {
    let count = values.len();
    let shown: Vec<String> = values.take(if count > VALUES { 20 } else { VALUES }).map(|v| v.to_string()).collect();
    match shown.as_slice() {
        [one] => one.clone(),
        _ if count > VALUES => format!("[{}, ... ]", shown.join(", ")),
        _ => format!("[{}]", shown.join(", ")),
    }
}

/// A fraction in lowest terms; a whole number without its denominator.
fn ratio(num: i64, denom: i64) -> String {
    let (mut a, mut b) = (num.unsigned_abs(), denom.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    let divisor = a.max(1) as i64;
    match denom / divisor {
        1 => (num / divisor).to_string(),
        denom => format!("{}/{denom}", num / divisor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_they_are_stored() {
        let rational = |num, denom| exif::Rational { num, denom };
        for (value, expected) in [
            (Value::Ascii(vec![b"Canon \0".to_vec()]), "Canon"),
            (Value::Undefined(b"0230".to_vec(), 0), "0230"),
            (Value::Undefined(vec![1, 2], 0), "[1, 2]"),
            (Value::Short(vec![6]), "6"),
            (Value::Rational(vec![rational(10, 600)]), "1/60"),
            (Value::Rational(vec![rational(72, 1), rational(0, 5), rational(3, 0)]), "[72, 0, 1/0]"),
            (Value::SRational(vec![exif::SRational { num: -2, denom: 6 }]), "-1/3"),
        ] {
            assert_eq!(text(&value), expected, "{value:?}");
        }
        assert!(text(&Value::Byte(vec![7; 999])).ends_with("7, ... ]"));
        assert_eq!(exif_text(b"not an image", false), "{}");
    }
}
