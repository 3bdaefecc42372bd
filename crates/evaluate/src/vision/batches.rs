//! Pictures in batches, of which the next one is read while the network looks at one.

use crate::Result;
use calotype_data::Control;
use std::ops::Range;
use std::panic::resume_unwind;
use std::thread;

/// Reads things 0 to `len` in batches and hands them over in their order. `control` is told the progress of `stage`.
///
/// # Errors
/// Those of `read` and `take`; [`calotype_data::Error::Interrupted`] if a stop was asked for.
pub(super) fn in_batches<T: Send>(
    (stage, len, batch): (&'static str, usize, usize),
    read: impl Fn(Range<usize>) -> Result<Vec<T>> + Sync,
    mut take: impl FnMut(Vec<T>) -> Result<()>,
    control: &mut Control<'_>,
) -> Result<()> {
    let batch = batch.max(1);
    let numbers = |first: usize| first..(first + batch).min(len);
    let read = &read;
    thread::scope(|scope| {
        let mut next = Some(scope.spawn(move || read(numbers(0))));
        for first in (0..len).step_by(batch) {
            control.checkpoint(stage, first, len)?;
            let Some(reading) = next.take() else { break };
            let things = reading.join().unwrap_or_else(|panic| resume_unwind(panic))?;
            let after = first + batch;
            next = (after < len).then(|| scope.spawn(move || read(numbers(after))));
            take(things)?;
        }
        control.report(stage, len, len);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EvaluateError;

    #[test]
    fn all_things_arrive_once_and_in_their_order() {
        for (len, batch) in [(0, 3), (1, 3), (7, 3), (6, 3), (5, 0), (4, 100)] {
            let mut found = Vec::new();
            let take = |things: Vec<usize>| {
                found.extend(things);
                Ok(())
            };
            in_batches(("test", len, batch), |numbers| Ok(numbers.collect()), take, &mut Control::default()).unwrap();
            assert_eq!(found, (0..len).collect::<Vec<_>>(), "{len} in batches of {batch}");
        }
    }

    #[test]
    fn faults_end_the_work() {
        let fault = |at: usize| {
            let read = |numbers: Range<usize>| match numbers.contains(&at) {
                true => Err(EvaluateError::Usage(format!("number {at}"))),
                false => Ok(vec![(); numbers.len()]),
            };
            in_batches(("test", 9, 2), read, |_| Ok(()), &mut Control::default()).unwrap_err().to_string()
        };
        assert_eq!((fault(0), fault(5)), ("number 0".to_owned(), "number 5".to_owned()));
        let mut stopped = Control::default().with_stop(|| true);
        let error =
            in_batches(("test", 9, 2), |numbers| Ok(vec![(); numbers.len()]), |_| Ok(()), &mut stopped).unwrap_err();
        assert!(error.is_interrupted(), "{error}");
    }
}
