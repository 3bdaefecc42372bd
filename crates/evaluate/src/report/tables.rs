//! Tables of figures: NeMo's two, one of all figures, one of all pictures.

use super::{Evaluation, ReferenceCurve, Setting};
use crate::figure::{self, FIGURES};
use crate::{EvaluateError, Result};
use calotype_core::{Quotes, durable, words};
use std::path::{Path, PathBuf};
use std::str::FromStr;

const PICTURES: &str = "picture_scores.csv";
/// Columns of [`PICTURES`] in front of those of the settings.
const COLUMNS: [&str; 2] = ["sample", "caption"];

/// Writes the tables into the folder, and returns their paths.
pub(super) fn write(evaluation: &Evaluation, out: &Path) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    let mut file = |name: String, bytes: Vec<u8>| {
        let path = out.join(name);
        durable::write_bytes(&path, &bytes).map_err(EvaluateError::io("write", &path))?;
        written.push(path);
        Ok::<(), EvaluateError>(())
    };
    for name in ["fid", "fd"] {
        let values =
            values(evaluation, |setting| setting.distance().filter(|figure| figure.metric == name).map(|f| f.value));
        if !values.is_empty() {
            file(format!("{name}_scores.csv"), two_columns(name, &values))?;
        }
    }
    let scores = values(evaluation, |setting| setting.clip_score().map(|figure| figure.value));
    if !scores.is_empty() {
        file("clip_scores.csv".into(), two_columns("clip_score", &scores))?;
    }
    if evaluation.settings.iter().any(|setting| !setting.clip_scores.is_empty()) {
        file(PICTURES.into(), by_picture(evaluation))?;
    }
    written.push(figure::write(out, evaluation)?);
    Ok(written)
}

/// Label and value of the settings that have one.
fn values(evaluation: &Evaluation, of: impl Fn(&Setting) -> Option<f64>) -> Vec<(&str, f64)> {
    evaluation.settings.iter().filter_map(|setting| Some((setting.label.as_str(), of(setting)?))).collect()
}

/// NeMo's form: the guidance scale (`cfg`), or what else is varied, and the value.
fn two_columns(name: &str, values: &[(&str, f64)]) -> Vec<u8> {
    let mut text = format!("cfg,{name}\n");
    for (label, value) in values {
        text += &format!("{},{value}\n", field(label));
    }
    text.into_bytes()
}

fn by_picture(evaluation: &Evaluation) -> Vec<u8> {
    let scored: Vec<&Setting> = evaluation.settings.iter().filter(|setting| !setting.clip_scores.is_empty()).collect();
    let labels = scored.iter().map(|setting| field(&setting.label));
    let mut text = COLUMNS.map(String::from).into_iter().chain(labels).collect::<Vec<_>>().join(",") + "\n";
    for (sample, caption) in evaluation.captions.iter().enumerate() {
        text += &format!("{sample},{}", field(caption));
        for setting in &scored {
            // The shortest form that reads back as the same number; nothing where there is none.
            let score = setting.clip_scores.get(sample).filter(|score| score.is_finite());
            text += &score.map_or(",".to_owned(), |score| format!(",{score}"));
        }
        text.push('\n');
    }
    text.into_bytes()
}

/// A field of a CSV file (RFC 4180).
fn field(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) || text.trim() != text {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

/// Reads the tables that [`write`] wrote.
pub(super) fn read(folder: &Path) -> Result<Evaluation> {
    let path = folder.join(FIGURES);
    let text = calotype_core::read_text(&path).map_err(EvaluateError::io("read", &path))?;
    let mut evaluation: Evaluation = serde_json::from_str(&text).map_err(|error| {
        let detail = words::plain(&error.to_string());
        let detail = format!("{detail}; give the folder of another evaluation, whose {FIGURES} it wrote");
        EvaluateError::File { path: path.clone(), detail }
    })?;
    let path = folder.join(PICTURES);
    if path.is_file() {
        read_pictures(&path, &mut evaluation)?;
    }
    Ok(evaluation)
}

fn read_pictures(path: &Path, evaluation: &mut Evaluation) -> Result<()> {
    let table = Table::read(path)?;
    let (sample, caption) = (table.column(COLUMNS[0])?, table.column(COLUMNS[1])?);
    for (index, row) in table.rows.iter().enumerate() {
        if row.text(sample).parse() != Ok(index) {
            return Err(row.fault(
                path,
                format!("sample {:?} where {index} comes next; keep the file as it was written", row.text(sample)),
            ));
        }
        evaluation.captions.push(row.text(caption).to_owned());
    }
    for setting in &mut evaluation.settings {
        let Some(column) = table.header.iter().position(|name| *name == setting.label) else { continue };
        let score = |row: &Row| if row.text(column).is_empty() { Ok(f32::NAN) } else { row.number(path, column) };
        setting.clip_scores = table.rows.iter().map(score).collect::<Result<_>>()?;
    }
    Ok(())
}

/// Reads a curve of somebody else.
pub(super) fn read_curve(path: &Path) -> Result<ReferenceCurve> {
    let name = path.file_stem().map_or_else(|| "reference".into(), |stem| stem.to_string_lossy().into_owned());
    let of = |path: &Path, value: &str| -> Result<Vec<(String, f64)>> {
        let table = Table::read(path)?;
        let (label, value) = (table.column("cfg")?, table.column(value)?);
        table.rows.iter().map(|row| Ok((row.text(label).to_owned(), row.number(path, value)?))).collect()
    };
    let (distances, scores) = match path.is_dir() {
        true => (of(&path.join("fid_scores.csv"), "fid")?, of(&path.join("clip_scores.csv"), "clip_score")?),
        false => (of(path, "fid")?, of(path, "clip_score")?),
    };
    let score = |label: &str| scores.iter().find(|(other, _)| same_label(other, label)).map(|(_, score)| *score);
    let point = |(label, distance): (String, f64)| score(&label).map(|score| (label, distance, score));
    let points: Vec<_> = distances.into_iter().filter_map(point).collect();
    match points.is_empty() {
        true => Err(EvaluateError::File {
            path: path.to_owned(),
            detail: "no setting has both a FID and a CLIP score; give a table with the columns cfg,fid,clip_score"
                .into(),
        }),
        false => Ok(ReferenceCurve { name, points }),
    }
}

/// Whether labels mean the same: `7` and `7.0` do.
pub(super) fn same_label(a: &str, b: &str) -> bool {
    a == b || matches!((a.parse::<f64>(), b.parse::<f64>()), (Ok(a), Ok(b)) if a == b)
}

/// A CSV file.
struct Table {
    path: PathBuf,
    header: Vec<String>,
    rows: Vec<Row>,
}

struct Row {
    line: u64,
    fields: csv::StringRecord,
}

impl Table {
    fn read(path: &Path) -> Result<Self> {
        let text = calotype_core::read_text(path).map_err(EvaluateError::io("read", path))?;
        let mut reader = csv::Reader::from_reader(Quotes::new(text.as_bytes(), Some(b',')));
        let bad = |error: csv::Error| EvaluateError::File { path: path.to_owned(), detail: error.to_string() };
        let header = reader.headers().map_err(bad)?.iter().map(str::to_owned).collect();
        let mut rows = Vec::new();
        for fields in reader.records() {
            let fields = fields.map_err(bad)?;
            rows.push(Row { line: fields.position().map_or(0, csv::Position::line), fields });
        }
        Ok(Self { path: path.to_owned(), header, rows })
    }

    fn column(&self, name: &str) -> Result<usize> {
        self.header.iter().position(|found| found.trim() == name).ok_or_else(|| EvaluateError::File {
            path: self.path.clone(),
            detail: format!("line 1: has no column {name}, only {}", self.header.join(", ")),
        })
    }
}

impl Row {
    fn text(&self, column: usize) -> &str {
        self.fields.get(column).unwrap_or_default()
    }

    fn number<T: FromStr + Copy + Into<f64>>(&self, path: &Path, column: usize) -> Result<T> {
        let text = self.text(column).trim();
        let number = text.parse().ok().filter(|number: &T| Into::<f64>::into(*number).is_finite());
        number.ok_or_else(|| self.fault(path, format!("{text:?} is no number")))
    }

    fn fault(&self, path: &Path, problem: String) -> EvaluateError {
        EvaluateError::File { path: path.to_owned(), detail: format!("line {}: {problem}", self.line) }
    }
}
