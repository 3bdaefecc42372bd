//! Counts in words.

/// "1 shard", "2 shards".
pub(crate) fn counted(count: impl TryInto<u64>, one: &str) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {one}"),
        count => format!("{count} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2].map(|count: usize| counted(count, "shard")), ["0 shards", "1 shard", "2 shards"]);
    }
}
