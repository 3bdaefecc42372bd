//! The stage that leaves out rows of parquet tables: by licence, size, similarity, or any condition over the columns.
//!
//! Every table of the input becomes one of the output, with the same schema, compression and order of rows, or N parts
//! as NeMo's `download_parquet` makes them. Batches of rows stream through, so memory does not depend on the tables'
//! sizes. A finished output names, in its own metadata, the input and settings that it was made of: a second run passes
//! by what is there, whichever way the work was sliced.

mod check;
mod error;
pub mod expression;
mod tables;
mod work;

pub use check::Condition;
pub use error::FilterError;
pub use expression::{Expression, ExpressionError};

use std::path::PathBuf;
use std::time::Instant;

use calotype_data::Control;

use crate::paths::check_out;
use crate::slices::SliceArgs;
use crate::{Account, Error, Result};
use tables::{Part, find_tables, is_one_file, parts};

/// Settings of the stage.
#[derive(Clone, Debug, clap::Args)]
pub struct FilterArgs {
    /// Parquet file, folder with parquet files (at any depth), or pattern such as 'data/part-000*.parquet'.
    pub input: String,
    /// Folder to write, or a file if the input is one file.
    pub out: PathBuf,
    /// Keep rows for which this is true, as in: --where "WIDTH >= 512 and lower(LICENSE) like 'cc-by%'". Can be given
    /// several times; rows that are left out are counted for the first condition that they do not meet.
    #[arg(long = "where", value_name = "CONDITION")]
    pub conditions: Vec<String>,
    /// Keep rows with a licence, as MLPerf does: all whose LICENSE is not "?".
    #[arg(long)]
    pub licensed: bool,
    /// Keep images at least this wide.
    #[arg(long, value_name = "PIXELS")]
    pub min_width: Option<u64>,
    /// Keep images at least this high.
    #[arg(long, value_name = "PIXELS")]
    pub min_height: Option<u64>,
    /// Keep images whose longer side is at most this many times the shorter one.
    #[arg(long, value_name = "RATIO", value_parser = calotype_core::numbers::not_negative)]
    pub max_aspect: Option<f64>,
    /// Keep pairs whose text and image are at least this similar (cosine of CLIP's embeddings).
    #[arg(long, value_name = "COSINE", allow_negative_numbers = true, value_parser = calotype_core::numbers::finite::<f64>)]
    pub min_similarity: Option<f64>,
    /// Keep images up to this verdict on their being unsafe.
    #[arg(long, value_name = "VERDICT", value_parser = NSFW_VERDICTS)]
    pub max_nsfw: Option<String>,
    /// Keep images with at least this aesthetic score.
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true, value_parser = calotype_core::numbers::finite::<f64>)]
    pub min_aesthetic: Option<f64>,
    /// Keep images that are unsafe with at most this probability.
    #[arg(long, value_name = "PROBABILITY", value_parser = calotype_core::numbers::share)]
    pub max_punsafe: Option<f64>,
    /// Keep images that carry a watermark with at most this probability.
    #[arg(long, value_name = "PROBABILITY", value_parser = calotype_core::numbers::share)]
    pub max_watermark: Option<f64>,
    /// Split each table into this many parts, in a folder `<file>_parts`.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = calotype_core::numbers::count::<u32>)]
    pub parts: u32,
    /// Rows of a row group at most; a whole row group is held in memory while it is written.
    #[arg(long, value_name = "ROWS", default_value_t = 131_072, value_parser = calotype_core::numbers::count::<usize>)]
    pub row_group_rows: usize,
    /// Tables that are worked on at once [default: the number of processors].
    #[arg(long, value_name = "N", value_parser = calotype_core::numbers::count::<usize>)]
    pub threads: Option<usize>,
    /// This process's slices of the work.
    #[command(flatten)]
    pub slices: SliceArgs,
}

const NSFW_VERDICTS: [&str; 3] = ["UNLIKELY", "UNSURE", "NSFW"];

/// A condition as it was asked for.
struct Clause {
    /// Name in the account of what was left out.
    reason: String,
    /// The expression; names in braces stand for one of the columns of [`COLUMNS`].
    template: String,
}

/// Names of columns in short-hands, and under which the published tables have them.
const COLUMNS: [(&str, &[&str]); 8] = [
    ("{license}", &["LICENSE", "license"]),
    ("{width}", &["WIDTH", "width", "original_width"]),
    ("{height}", &["HEIGHT", "height", "original_height"]),
    ("{similarity}", &["similarity", "SIMILARITY"]),
    ("{nsfw}", &["NSFW", "nsfw"]),
    ("{aesthetic}", &["AESTHETIC_SCORE", "aesthetic_score", "aesthetic"]),
    ("{punsafe}", &["punsafe", "PUNSAFE"]),
    ("{watermark}", &["pwatermark", "PWATERMARK"]),
];

impl FilterArgs {
    /// The conditions in the order in which they are tried: short-hands first.
    fn clauses(&self) -> Vec<Clause> {
        let mut clauses = Vec::new();
        let mut add = |reason: String, template: String| clauses.push(Clause { reason, template });
        if self.licensed {
            // The reference compares with Python, where a missing licence is different from "?" and stays.
            add("--licensed".to_owned(), "{license} is null or {license} != '?'".to_owned());
        }
        let numbers = [
            ("--min-width", self.min_width.map(|n| n as f64), "{width} >= "),
            ("--min-height", self.min_height.map(|n| n as f64), "{height} >= "),
            ("--max-aspect", self.max_aspect, "max({width}, {height}) <= min({width}, {height}) * "),
            ("--min-similarity", self.min_similarity, "{similarity} >= "),
            ("--min-aesthetic", self.min_aesthetic, "{aesthetic} >= "),
            ("--max-punsafe", self.max_punsafe, "{punsafe} <= "),
            ("--max-watermark", self.max_watermark, "{watermark} <= "),
        ];
        for (flag, value, template) in numbers {
            if let Some(value) = value {
                add(format!("{flag} {value}"), format!("{template}{value}"));
            }
        }
        if let Some(most) = &self.max_nsfw {
            let last = NSFW_VERDICTS.iter().position(|verdict| verdict == most).unwrap_or(0);
            let allowed = NSFW_VERDICTS[..=last].join("', '");
            add(format!("--max-nsfw {most}"), format!("{{nsfw}} in ('{allowed}')"));
        }
        for condition in &self.conditions {
            // A brace means nothing in an expression outside of texts, so names in braces cannot be meant there.
            clauses.push(Clause { reason: condition.clone(), template: condition.clone() });
        }
        clauses
    }
}

/// Filters the tables.
///
/// # Errors
/// [`Error::Filter`] for conditions and tables that cannot be used, [`Error::Io`], and [`Error::Data`] if stopped.
pub fn run(args: &FilterArgs, control: &mut Control<'_>) -> Result<Account> {
    let started = Instant::now();
    if args.parts == 0 || args.row_group_rows == 0 || args.threads == Some(0) {
        return Err(Error::Usage("--parts, --row-group-rows and --threads have to be at least 1".to_owned()));
    }
    let numbers = [args.max_aspect, args.min_similarity, args.min_aesthetic, args.max_punsafe, args.max_watermark];
    if let Some(number) = numbers.into_iter().flatten().find(|number| !number.is_finite()) {
        return Err(Error::Usage(format!("{number} is no limit; give a finite number")));
    }
    let clauses = args.clauses();
    // Mistakes in the text are told before a table is opened.
    for condition in &args.conditions {
        Expression::parse(condition).map_err(|source| FilterError::Expression { path: None, source })?;
    }
    // A file that is there is looked into below.
    if !(is_one_file(args) && args.out.is_file()) {
        check_out(&args.out)?;
    }
    let tables = find_tables(args)?;
    for table in &tables {
        table.conditions(&clauses)?;
    }
    let all = parts(&tables, args);
    all.iter().try_for_each(|part| work::check_place(&part.out))?;
    let mine: Vec<&Part> = args.slices.slices()?.into_iter().flat_map(|slice| &all[slice.range(all.len())]).collect();
    let mut account = work::run(args, &clauses, &mine, control)?;
    account.notes.push(format!("{} tables in, {} written", tables.len(), mine.len()));
    account.seconds = started.elapsed().as_secs_f64();
    Ok(account)
}
