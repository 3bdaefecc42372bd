//! Weights in the form that the kernels multiply with, kept from one call to the next.
//!
//! An entry belongs to the storage of one weight, and holds it weakly: it keeps neither the weight's numbers in memory nor
//! an in-place change from happening in place. While the entry is there, no other storage can have the same address, and
//! whoever changes or drops the numbers takes them out of that address first (`Arc::make_mut` and `Arc::try_unwrap` move
//! them, `Arc::get_mut` refuses). So an entry that is found is never out of date, and nobody needs to invalidate one.
//! Optimizer steps take a weight's forms out, pack the new numbers into them while they change the weight, and put them back.
//!
//! Memory: at most one packed copy for each form that a living weight was multiplied in; in bf16 that is half of `f32`
//! weights again, and as much as weights that are `bf16` themselves. Entries whose weight is gone are removed whenever another weight is packed, and after
//! each optimizer step, by [`PackedCache::sweep`].

use burn::backend::flex::FlexTensor;
use burn::tensor::{Bytes, Element};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::LocalKey;

/// A weight's packed forms.
struct Entry<F, P> {
    storage: Weak<Bytes>,
    forms: Vec<(F, Arc<P>)>,
}

/// By the storage's address. `None` until the first is inserted, so that a cache can be a constant.
type Entries<F, P> = Option<HashMap<usize, Entry<F, P>>>;

/// Packed weights `P` by storage and form `F` (what else the packing depends on: type, geometry).
pub struct PackedCache<F, P>(Mutex<Entries<F, P>>);

impl<F: Copy + Eq, P> PackedCache<F, P> {
    /// An empty cache.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn entries(&self) -> MutexGuard<'_, Entries<F, P>> {
        // Entries are inserted whole; a panic while packing leaves none behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The weight in `form`, made by `pack` where there is none yet.
    ///
    /// Nothing for a weight that is not of `W` or not the whole of its storage, and within [`bypassed`]. Other threads wait while a
    /// weight is packed.
    pub fn get<W: Element + calotype_kernels::Element>(
        &self,
        weight: &FlexTensor,
        form: F,
        pack: impl FnOnce(&[W]) -> P,
    ) -> Option<Arc<P>> {
        let values = weight.as_slice::<W>()?;
        if BYPASSED.get() || size_of_val(values) != weight.bytes().len() {
            return None;
        }
        let storage = weight.data_arc();
        let mut entries = self.entries();
        let entries = entries.get_or_insert_default();
        let found = entries.get(&address(&storage)).and_then(|entry| entry.forms.iter().find(|(f, _)| *f == form));
        if let Some((_, packed)) = found {
            return Some(packed.clone());
        }
        entries.retain(|_, entry| entry.storage.strong_count() > 0);
        let packed = Arc::new(pack(values));
        insert(entries, &storage, [(form, packed.clone())]);
        Some(packed)
    }

    /// Takes all forms of a weight out, which is about to change.
    pub fn take(&self, weight: &FlexTensor) -> Vec<(F, Arc<P>)> {
        let entry = self.entries().as_mut().and_then(|entries| entries.remove(&address(&weight.data_arc())));
        entry.map_or_else(Vec::new, |entry| entry.forms)
    }

    /// Puts forms in that the caller has made from the weight's present numbers.
    pub fn put(&self, weight: &FlexTensor, forms: impl IntoIterator<Item = (F, Arc<P>)>) {
        insert(self.entries().get_or_insert_default(), &weight.data_arc(), forms);
    }

    /// Removes the entries whose weight was changed or dropped.
    pub fn sweep(&self) {
        if let Some(entries) = self.entries().as_mut() {
            entries.retain(|_, entry| entry.storage.strong_count() > 0);
        }
    }

    /// The sum of `measure` over all forms, those not yet removed included.
    pub fn sum(&self, measure: impl Fn(&P) -> usize) -> usize {
        let entries = self.entries();
        entries.iter().flat_map(HashMap::values).flat_map(|entry| &entry.forms).map(|(_, packed)| measure(packed)).sum()
    }
}

fn address(storage: &Arc<Bytes>) -> usize {
    Arc::as_ptr(storage) as usize
}

fn insert<F, P>(
    entries: &mut HashMap<usize, Entry<F, P>>,
    storage: &Arc<Bytes>,
    forms: impl IntoIterator<Item = (F, Arc<P>)>,
) {
    let mut forms = forms.into_iter().peekable();
    if forms.peek().is_some() {
        let new = || Entry { storage: Arc::downgrade(storage), forms: Vec::new() };
        entries.entry(address(storage)).or_insert_with(new).forms.extend(forms);
    }
}

impl<F: Copy + Eq, P> Default for PackedCache<F, P> {
    fn default() -> Self {
        Self::new()
    }
}

thread_local! {
    static BYPASSED: Cell<bool> = const { Cell::new(false) };
    static LEAN: Cell<bool> = const { Cell::new(false) };
    static TRAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` with a flag set, and puts the flag back even when the body panics.
fn with<R>(flag: &'static LocalKey<Cell<bool>>, body: impl FnOnce() -> R) -> R {
    struct Restore(&'static LocalKey<Cell<bool>>, bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(flag, flag.replace(true));
    body()
}

/// Runs `body` without packed weights on this thread.
pub fn bypassed<R>(body: impl FnOnce() -> R) -> R {
    with(&BYPASSED, body)
}

/// Runs `body`, a forward or backward pass, without packing the weights that are trained: for training in the least memory.
pub fn lean<R>(body: impl FnOnce() -> R) -> R {
    with(&LEAN, body)
}

/// Runs `body`, which takes weights that are trained.
pub(crate) fn on_trained<R>(body: impl FnOnce() -> R) -> R {
    with(&TRAINED, || if LEAN.get() { bypassed(body) } else { body() })
}

/// True within [`on_trained`].
pub(crate) fn takes_trained() -> bool {
    TRAINED.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdamW, ParameterState, StepParams, Update, optimizer_step};
    use burn::backend::flex::{Flex, Layout};
    use burn::tensor::{DType, Tensor};

    fn weight(values: &[f32]) -> FlexTensor {
        FlexTensor::new(Bytes::from_elems(values.to_vec()), Layout::contiguous([values.len()].into()), DType::F32)
    }

    /// Packs by copying, and tells whether it had to.
    fn get(cache: &PackedCache<u8, Vec<f32>>, weight: &FlexTensor, form: u8) -> (Vec<f32>, bool) {
        let mut packed = false;
        let values = cache.get(weight, form, |values| {
            packed = true;
            values.to_vec()
        });
        (values.expect("a whole storage").to_vec(), packed)
    }

    #[test]
    fn packs_once_for_each_form_and_shares_clones() {
        let cache = PackedCache::new();
        let w = weight(&[1.0, 2.0]);
        assert!(get(&cache, &w, 0).1);
        assert!(!get(&cache, &w.clone(), 0).1);
        assert!(get(&cache, &w, 1).1);
        assert_eq!(cache.sum(Vec::len), 4);
    }

    #[test]
    fn a_changed_weight_is_packed_again_and_was_changed_in_place() {
        let cache = PackedCache::new();
        let w = weight(&[1.0; 64]);
        assert_eq!(get(&cache, &w, 0).0, [1.0; 64]);
        let memory = w.bytes().as_ptr();
        let tensor = |w| Tensor::<1>::from_primitive::<Flex>(w);
        let zeros = || tensor(weight(&[0.0; 64]));
        let state = ParameterState { parameter: tensor(w), moments: vec![zeros(), zeros()], average: None };
        let update = Update::AdamW(AdamW::default());
        let params = StepParams { update, step: 1, gradient_scale: 1.0, ema_decay: 0.0 };
        let new = optimizer_step(state, tensor(weight(&[1.0; 64])), &params).parameter;
        let w = new.try_into_primitive::<Flex>().expect("a tensor of Flex");
        assert_eq!(w.bytes().as_ptr(), memory, "the step copied the weight");
        let (values, packed) = get(&cache, &w, 0);
        assert!(packed && values.iter().all(|&v| v < 1.0));
        assert_eq!(cache.sum(Vec::len), 64, "the old packing is gone");
    }

    #[test]
    fn forms_that_are_taken_out_can_be_put_back() {
        let cache = PackedCache::new();
        let w = weight(&[1.0, 2.0]);
        get(&cache, &w, 0);
        get(&cache, &w, 1);
        let forms = cache.take(&w);
        assert_eq!(forms.iter().map(|(form, _)| *form).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(Arc::weak_count(&w.data_arc()), 0, "a weight can change in place once its forms are out");
        assert!(cache.take(&w).is_empty());
        cache.put(&w, forms.into_iter().take(1));
        assert!(!get(&cache, &w, 0).1);
        assert!(get(&cache, &w, 1).1);
    }

    #[test]
    fn dropped_weights_leave_with_the_next_packing_or_a_sweep() {
        let cache = PackedCache::new();
        let (a, b) = (weight(&[1.0; 10]), weight(&[2.0; 3]));
        get(&cache, &a, 0);
        drop(a);
        assert_eq!(cache.sum(Vec::len), 10);
        get(&cache, &b, 0);
        assert_eq!(cache.sum(Vec::len), 3);
        drop(b);
        cache.sweep();
        assert_eq!(cache.sum(Vec::len), 0);
    }

    #[test]
    fn views_and_bypassed_passes_are_not_packed() {
        let cache = PackedCache::<u8, Vec<f32>>::new();
        let w = weight(&[1.0, 2.0, 3.0]);
        let view = w.clone().with_layout(Layout::contiguous([2].into()));
        assert!(cache.get(&view, 0, <[f32]>::to_vec).is_none());
        assert!(bypassed(|| cache.get(&w, 0, <[f32]>::to_vec)).is_none());
        assert!(cache.get(&w, 0, <[f32]>::to_vec).is_some());
    }

    #[test]
    fn threads_share_a_cache() {
        static CACHE: PackedCache<u8, Vec<f32>> = PackedCache::new();
        let weights: Vec<FlexTensor> = (0..50).map(|i| weight(&[i as f32; 33])).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for (i, w) in weights.iter().enumerate() {
                        assert_eq!(get(&CACHE, w, 0).0, [i as f32; 33]);
                    }
                });
            }
        });
        assert_eq!(CACHE.sum(Vec::len), 50 * 33);
    }
}
