//! Opens the sources that a recipe's table `[data]` names.

use crate::config::DataSettings;
use calotype_core::stop::StopFlag;
use calotype_data::precache::{NO_ENCODER, encoder_of, require_encoder};
use calotype_data::source::{
    Filtered, SampleFilter, SourceKind, has_packed_shards, is_shard_folder, open, refuse_idle, tell_beside,
};
use calotype_data::{Control, Dataset, Error, Mixture, Source};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Opens the source, or the mixture of sources, of a recipe. With `stop`, folders of shards are read through once for
/// damage, unless the recipe says otherwise; shards of other machines are compared with their checksums when they come.
///
/// # Errors
/// Those of opening and of checking; [`Error::BadSource`] for settings of `[data.source]` that no source follows;
/// [`Error::EncoderMismatch`] if the recipe requires other encoders, or if sources
/// of one mixture were encoded by different ones.
pub fn open_source(data: &DataSettings, stop: Option<&StopFlag>) -> Result<Arc<dyn Source>, Error> {
    let mut sources = Vec::new();
    for (spec, weight) in data.specs() {
        sources.push((filtered(open_one(spec, data, stop)?, &data.filter)?, weight));
    }
    refuse_idle(data.specs().into_iter().map(|(spec, _)| spec), &data.source)?;
    same_encoders(&sources)?;
    let source = match sources.len() {
        1 => sources.swap_remove(0).0,
        _ => Arc::new(Mixture::new(sources)?),
    };
    if let Some(wanted) = &data.require_encoder {
        require_encoder(&source.name(), source.meta(), wanted)?;
    }
    Ok(source)
}

fn filtered(source: Arc<dyn Source>, filter: &SampleFilter) -> Result<Arc<dyn Source>, Error> {
    Ok(if *filter == SampleFilter::default() { source } else { Arc::new(Filtered::new(source, filter)?) })
}

fn open_one(spec: &str, data: &DataSettings, stop: Option<&StopFlag>) -> Result<Arc<dyn Source>, Error> {
    let shards = matches!(data.source.kind, None | Some(SourceKind::Webdataset)) && is_shard_folder(Path::new(spec))?;
    if shards {
        tell_beside(Path::new(spec), SourceKind::Webdataset);
    }
    let packed = shards && has_packed_shards(Path::new(spec))?;
    let Some(stop) = stop.filter(|_| data.verify && shards && !packed) else { return open(spec, &data.source) };
    let dataset = Dataset::open(spec)?;
    match dataset.verify(&mut Control::default().with_stop(|| stop.is_set())) {
        // The training loop sees the same flag before its first step.
        Ok(_) | Err(Error::Interrupted { .. }) => {}
        Err(error) => return Err(error),
    }
    Ok(Arc::new(if data.source.quarantine { dataset.without_quarantined()? } else { dataset }))
}

fn same_encoders(sources: &[(Arc<dyn Source>, f64)]) -> Result<(), Error> {
    let encoder = |source: &Arc<dyn Source>| encoder_of(source.meta()).unwrap_or(NO_ENCODER).to_owned();
    let Some((first, _)) = sources.first() else { return Ok(()) };
    let expected = encoder(first);
    match sources.iter().find(|(source, _)| encoder(source) != expected) {
        None => Ok(()),
        Some((other, _)) => {
            Err(Error::EncoderMismatch { path: PathBuf::from(other.name()), expected, found: encoder(other) })
        }
    }
}
