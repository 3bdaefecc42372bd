//! Which pictures of an accuracy run are kept for reviewers.

use super::error::{AccuracyError, Result};
use calotype_core::{NumpyRandomState, read_text};
use calotype_mlperf::inference::Round;
use std::path::Path;

/// Number of these pictures.
const PICTURES: usize = 10;

/// A round's choice among `captions` captions, which may name one twice: `numpy.random.choice(captions, 10)`, as `sample_ids.py`
/// draws it. Of 5,000, it is the `sample_ids.txt` of the round.
pub fn of_round(round: Round, captions: usize) -> Vec<usize> {
    let drawn = NumpyRandomState::new(round.reviewers_seed()).choice_with_replacement(captions, PICTURES);
    drawn.into_iter().map(|id| id as usize).collect()
}

/// The ids of a file such as `sample_ids.txt`: one on each line.
///
/// # Errors
/// [`AccuracyError::Evaluate`], which names file and line.
pub fn read(path: &Path) -> Result<Vec<usize>> {
    let text = read_text(path).map_err(AccuracyError::io("read", path))?;
    let id = |(number, line): (usize, &str)| {
        let wrong = || format!("line {}: `{}` is no number of a sample from 0", number + 1, line.trim());
        line.trim().parse().map_err(|_| AccuracyError::file(path, wrong()))
    };
    text.trim_end().lines().enumerate().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_the_published_ones() {
        // text_to_image/tools/sample_ids.txt of each round's tag, commit f131a0d2 for v6.0 and 4b790a61 for v6.1.
        for (round, ids) in [
            (Round::V4_0, [4459, 4015, 2705, 1682, 4048, 4683, 3757, 1578, 3319, 95]),
            (Round::V4_1, [4655, 2569, 1303, 109, 4509, 3009, 2179, 1826, 2094, 3340]),
            (Round::V5_0, [716, 2387, 3694, 273, 1221, 2942, 2047, 1691, 1510, 4399]),
            (Round::V5_1, [2747, 2235, 2165, 1515, 1538, 1367, 2419, 4629, 3657, 4532]),
            (Round::V6_0, [1311, 2476, 3644, 2188, 4114, 52, 388, 1195, 3427, 2289]),
            (Round::V6_1, [4475, 3627, 1046, 4937, 3867, 1671, 3789, 1206, 4111, 3093]),
        ] {
            assert_eq!(of_round(round, 5000), ids, "{round}");
        }
        // NumPy 2.4.6, as sample_ids.py does it with a table of 50 captions: 18 is there twice.
        assert_eq!(of_round(Round::V4_0, 50), [43, 47, 17, 18, 45, 18, 16, 11, 36, 21]);
        assert_eq!(of_round(Round::V4_1, 50), [47, 44, 9, 23, 17, 6, 45, 29, 1, 48]);
    }

    #[test]
    fn files_of_ids_are_read_and_others_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sample_ids.txt");
        for text in ["4\n 7 \n4", "4\r\n7\r\n4\r\n"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&path).unwrap(), [4, 7, 4]);
        }
        for (text, problem) in
            [("4\n\n7\n", "line 2: `` is no"), ("-1", "line 1: `-1`"), ("a\n", "`a`"), ("1.0", "`1.0`")]
        {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("sample_ids.txt"), "{error}");
        }
    }
}
