//! Files of an evaluation of a vision model.

use super::accuracy::Ranked;
use crate::{EvaluateError, Result};
use calotype_core::durable::write_bytes;
use std::collections::BTreeMap;
use std::path::Path;

/// Each picture with its best classes.
pub const PREDICTIONS: &str = "predictions.csv";
/// Each class with its share of right pictures, and what it is taken for.
pub const CLASSES: &str = "classes.csv";

/// Writes what became of pictures of the classes `names` into a folder that is there.
///
/// # Errors
/// [`EvaluateError::Io`].
pub fn write_tables(folder: &Path, pictures: &[Ranked], names: &[String]) -> Result<()> {
    let write = |name: &str, rows: Vec<Vec<String>>| {
        let file = folder.join(name);
        table(rows).and_then(|bytes| write_bytes(&file, &bytes)).map_err(EvaluateError::io("write", &file))
    };
    write(PREDICTIONS, predictions(pictures, names))?;
    write(CLASSES, classes(pictures, names))
}

fn table(rows: Vec<Vec<String>>) -> std::io::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.write_record(row)?;
    }
    writer.into_inner().map_err(|error| std::io::Error::other(error.to_string()))
}

fn row(cells: &[&dyn std::fmt::Display]) -> Vec<String> {
    cells.iter().map(|cell| cell.to_string()).collect()
}

fn predictions(pictures: &[Ranked], names: &[String]) -> Vec<Vec<String>> {
    let mut rows = vec![row(&[&"image", &"class", &"name", &"right_at", &"predicted", &"predicted_name", &"tied"])];
    for picture in pictures {
        let Ranked { name, class, best, tied } = picture;
        let Some(first) = best.first() else { continue };
        let rank = best.iter().position(|found| found == class).map_or(String::new(), |at| (at + 1).to_string());
        rows.push(row(&[name, class, &names[*class], &rank, first, &names[*first], tied]));
    }
    rows
}

/// What became of the pictures of one class.
#[derive(Default)]
pub(super) struct ClassResult {
    /// Its pictures.
    pub(super) pictures: usize,
    /// Those that were taken for it.
    pub(super) right: usize,
    /// How many were taken for each other class.
    pub(super) others: BTreeMap<usize, usize>,
}

impl ClassResult {
    /// The share that is right.
    pub(super) fn share(&self) -> f64 {
        self.right as f64 / self.pictures as f64
    }

    /// The other class that it is taken for most often, of several the first, and how often.
    pub(super) fn taken_for(&self) -> Option<(usize, usize)> {
        let most = self.others.iter().max_by(|a, b| a.1.cmp(b.1).then(b.0.cmp(a.0)));
        most.map(|(class, times)| (*class, *times))
    }
}

/// What became of the pictures of each class that has some.
pub(super) fn per_class(pictures: &[Ranked]) -> BTreeMap<usize, ClassResult> {
    let mut found: BTreeMap<usize, ClassResult> = BTreeMap::new();
    for picture in pictures {
        let of_class = found.entry(picture.class).or_default();
        of_class.pictures += 1;
        match picture.best.first() {
            Some(first) if *first == picture.class => of_class.right += 1,
            Some(first) => *of_class.others.entry(*first).or_default() += 1,
            None => {}
        }
    }
    found
}

fn classes(pictures: &[Ranked], names: &[String]) -> Vec<Vec<String>> {
    let mut rows = vec![row(&[&"class", &"name", &"images", &"top_1", &"taken_for", &"taken_for_name", &"times"])];
    for (class, found) in per_class(pictures) {
        let (taken, name, times) = found.taken_for().map_or_else(Default::default, |(class, times)| {
            (class.to_string(), names[class].clone(), times.to_string())
        });
        rows.push(row(&[&class, &names[class], &found.pictures, &found.share(), &taken, &name, &times]));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_say_what_became_of_each_picture() {
        let folder = tempfile::tempdir().unwrap();
        let ranked = |name: &str, class: usize, best: &[usize]| Ranked {
            name: name.to_owned(),
            class,
            best: best.to_vec(),
            tied: name == "c",
        };
        let names = ["cat", "dog, brown", "fox"].map(str::to_owned);
        let pictures =
            [ranked("a", 0, &[0, 1]), ranked("b", 0, &[2, 0]), ranked("c", 0, &[1, 2]), ranked("d", 1, &[1, 0])];
        write_tables(folder.path(), &pictures, &names).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(
            read(PREDICTIONS),
            "image,class,name,right_at,predicted,predicted_name,tied\na,0,cat,1,0,cat,false\nb,0,cat,2,2,fox,false\n\
             c,0,cat,,1,\"dog, brown\",true\nd,1,\"dog, brown\",1,1,\"dog, brown\",false\n"
        );
        let third = 1.0 / 3.0;
        assert_eq!(
            read(CLASSES),
            format!(
                "class,name,images,top_1,taken_for,taken_for_name,times\n0,cat,3,{third},1,\"dog, brown\",1\n1,\"dog, \
                 brown\",1,1,,,\n"
            )
        );
    }
}
