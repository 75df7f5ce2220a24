//! What was made last is kept: graphs of steps that come again and again.

use std::collections::HashMap;
use std::hash::Hash;

/// Values by key, of which those used last are kept.
pub(super) struct Recent<K, V> {
    entries: HashMap<K, Entry<V>>,
    limit: usize,
    /// Uses so far.
    now: u64,
}

struct Entry<V> {
    value: V,
    used: u64,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    /// Room for `limit` of them, at least one.
    pub(super) fn new(limit: usize) -> Self {
        assert!(limit > 0, "room for one");
        Self { entries: HashMap::new(), limit, now: 0 }
    }

    /// The value of `key`; made, if it is not here, in the place of the one that was not used for the longest time.
    pub(super) fn get_or_make<E>(&mut self, key: &K, make: impl FnOnce() -> Result<V, E>) -> Result<&V, E> {
        self.now += 1;
        if !self.entries.contains_key(key) {
            let value = make()?;
            if self.entries.len() == self.limit {
                let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
                self.entries.remove(&oldest.expect("it is full"));
            }
            self.entries.insert(key.clone(), Entry { value, used: 0 });
        }
        let entry = self.entries.get_mut(key).expect("it is here");
        entry.used = self.now;
        Ok(&entry.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn what_was_used_last_is_kept() {
        let made = RefCell::new(Vec::new());
        let mut recent = Recent::new(2);
        let mut get = |key: u32| {
            let value = recent.get_or_make(&key, || {
                made.borrow_mut().push(key);
                if key == 13 { Err("no luck") } else { Ok(10 * key) }
            });
            value.copied()
        };
        // 2 makes room for 3, since 1 was used after it; what could not be made takes nobody's place.
        let expected =
            [(1, Ok(10)), (2, Ok(20)), (1, Ok(10)), (13, Err("no luck")), (3, Ok(30)), (1, Ok(10)), (2, Ok(20))];
        for (key, value) in expected {
            assert_eq!(get(key), value);
        }
        assert_eq!(*made.borrow(), [1, 2, 13, 3, 2]);
    }
}
