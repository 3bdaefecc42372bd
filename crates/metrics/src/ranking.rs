//! The order that PyTorch's sorts leave scores in, equal ones included.
//!
//! `torch.topk` and `torch.argsort` do not keep equal scores in their order. On the CPU they leave them where the
//! algorithms of GCC's C++ library put them, which is a function of the scores alone; so a figure that depends on ties is
//! only met by the same algorithms. They are written here from their published descriptions: heap selection and heapsort
//! (Williams 1964, Floyd 1964), introselect and introsort (Musser 1997: quicksort by the median of three, heapsort below
//! 2 log₂ n levels, insertion sort of pieces of up to 16), in the steps of libstdc++ 13, and held against PyTorch 2.15.

/// A score and its index.
type Entry = (f32, u32);

/// Pieces that quicksort leaves to the insertion sort.
const PIECE: usize = 16;

/// The indices of the `k` highest scores, highest first, as `torch.topk(scores, k)` on the CPU returns them. If `k` is
/// larger than the number of scores, which PyTorch refuses, all. NaN counts as the highest.
pub fn top_k(scores: &[f32], k: usize) -> Vec<u32> {
    let mut entries = entries(scores);
    let k = k.min(entries.len());
    if k == 0 {
        return Vec::new();
    }
    // PyTorch's rule: heaps where few are wanted of many.
    if k.saturating_mul(64) <= entries.len() {
        heap_select(&mut entries, k);
        sort_heap(&mut entries[..k]);
    } else {
        select_nth(&mut entries, k - 1);
        sort(&mut entries[..k - 1]);
    }
    entries[..k].iter().map(|entry| entry.1).collect()
}

/// All indices, highest score first, as `torch.argsort(scores, descending=True)` on the CPU returns them. NaN counts
/// as the highest.
pub fn argsort_descending(scores: &[f32]) -> Vec<u32> {
    let mut entries = entries(scores);
    sort(&mut entries);
    entries.into_iter().map(|entry| entry.1).collect()
}

fn entries(scores: &[f32]) -> Vec<Entry> {
    scores.iter().copied().zip(0..).collect()
}

/// Whether `a` belongs before `b`; PyTorch puts NaN before all numbers.
fn before(a: Entry, b: Entry) -> bool {
    a.0 > b.0 || a.0.is_nan() && !b.0.is_nan()
}

/// Puts what belongs first into `entries[..k]`, a heap with the last of them on top.
fn heap_select(entries: &mut [Entry], k: usize) {
    let (heap, rest) = entries.split_at_mut(k);
    for parent in (0..k / 2).rev() {
        sift(heap, parent, heap[parent]);
    }
    for entry in rest {
        if before(*entry, heap[0]) {
            let value = std::mem::replace(entry, heap[0]);
            sift(heap, 0, value);
        }
    }
}

/// Sorts a heap.
fn sort_heap(heap: &mut [Entry]) {
    for last in (1..heap.len()).rev() {
        let value = heap[last];
        heap[last] = heap[0];
        sift(&mut heap[..last], 0, value);
    }
}

/// Puts a value into the heap below `top`, whose own entry is free: the hole sinks to the bottom along the later child,
/// then the value rises.
fn sift(heap: &mut [Entry], top: usize, value: Entry) {
    let len = heap.len();
    let mut hole = top;
    while 2 * hole + 2 < len {
        let mut child = 2 * hole + 2;
        if before(heap[child], heap[child - 1]) {
            child -= 1;
        }
        heap[hole] = heap[child];
        hole = child;
    }
    if 2 * hole + 2 == len {
        heap[hole] = heap[2 * hole + 1];
        hole = 2 * hole + 1;
    }
    while hole > top {
        let parent = (hole - 1) / 2;
        if !before(heap[parent], value) {
            break;
        }
        heap[hole] = heap[parent];
        hole = parent;
    }
    heap[hole] = value;
}

/// Levels of quicksort before heaps take over.
fn levels(len: usize) -> u32 {
    2 * len.max(1).ilog2()
}

/// Puts the entry there that belongs at `nth`, and what belongs before it before it.
fn select_nth(entries: &mut [Entry], nth: usize) {
    let (mut first, mut last) = (0, entries.len());
    let mut left = levels(last);
    while last - first > 3 {
        if left == 0 {
            heap_select(&mut entries[first..last], nth + 1 - first);
            entries.swap(first, nth);
            return;
        }
        left -= 1;
        let cut = first + partition(&mut entries[first..last]);
        if cut <= nth { first = cut } else { last = cut }
    }
    insertion_sort(&mut entries[first..last]);
}

fn sort(entries: &mut [Entry]) {
    quicksort(entries, levels(entries.len()));
    let ordered = PIECE.min(entries.len());
    insertion_sort(&mut entries[..ordered]);
    for at in ordered..entries.len() {
        insert(entries, at);
    }
}

/// Sorts down to pieces of [`PIECE`].
fn quicksort(mut entries: &mut [Entry], mut left: u32) {
    while entries.len() > PIECE {
        if left == 0 {
            heap_select(entries, entries.len());
            sort_heap(entries);
            return;
        }
        left -= 1;
        let cut = partition(entries);
        let (low, high) = entries.split_at_mut(cut);
        quicksort(high, left);
        entries = low;
    }
}

/// Parts entries about the median of the second, the middle and the last, which is put first; at least three entries.
fn partition(entries: &mut [Entry]) -> usize {
    median_to_first(entries);
    let pivot = entries[0];
    let (mut low, mut high) = (1, entries.len());
    loop {
        while before(entries[low], pivot) {
            low += 1;
        }
        high -= 1;
        while before(pivot, entries[high]) {
            high -= 1;
        }
        if low >= high {
            return low;
        }
        entries.swap(low, high);
        low += 1;
    }
}

fn median_to_first(entries: &mut [Entry]) {
    let (a, b, c) = (1, entries.len() / 2, entries.len() - 1);
    let before = |x: usize, y: usize| before(entries[x], entries[y]);
    let median = if before(a, b) {
        if before(b, c) {
            b
        } else if before(a, c) {
            c
        } else {
            a
        }
    } else if before(a, c) {
        a
    } else if before(b, c) {
        c
    } else {
        b
    };
    entries.swap(0, median);
}

fn insertion_sort(entries: &mut [Entry]) {
    for at in 1..entries.len() {
        if before(entries[at], entries[0]) {
            entries[..=at].rotate_right(1);
        } else {
            insert(entries, at);
        }
    }
}

/// Moves an entry forward to its place among those before it.
fn insert(entries: &mut [Entry], mut at: usize) {
    while at > 0 && before(entries[at], entries[at - 1]) {
        entries.swap(at, at - 1);
        at -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_right_whatever_the_scores() {
        let mut state = 1u64;
        for len in 0..200usize {
            for values in [1u64, 2, 5, 1 << 20] {
                let scores: Vec<f32> = (0..len)
                    .map(|_| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        ((state >> 33) % values) as f32
                    })
                    .collect();
                let mut sorted = scores.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let picked = |order: &[u32]| order.iter().map(|&i| scores[i as usize]).collect::<Vec<_>>();
                let order = argsort_descending(&scores);
                assert_eq!(picked(&order), sorted);
                let mut all = order.clone();
                all.sort_unstable();
                assert!(all.into_iter().eq(0..len as u32));
                for k in [0, 1, 2, 3, 5, len / 2, len, len + 1] {
                    assert_eq!(picked(&top_k(&scores, k)), sorted[..k.min(len)], "{len} {values} {k}");
                }
            }
        }
    }

    #[test]
    fn quicksort_gives_way_to_heaps() {
        // Many equal scores among rising ones make bad medians; the order must still be right.
        for len in [100, 1000, 5000] {
            let scores: Vec<f32> = (0..len).map(|i| if i % 2 == 0 { i as f32 } else { (len - i) as f32 }).collect();
            let order = argsort_descending(&scores);
            assert!(order.windows(2).all(|pair| scores[pair[0] as usize] >= scores[pair[1] as usize]));
            let mut entries = entries(&scores);
            quicksort(&mut entries, 0);
            assert!(entries.windows(2).all(|pair| pair[0].0 >= pair[1].0));
        }
    }
}
