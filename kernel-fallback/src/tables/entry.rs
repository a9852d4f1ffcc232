//! What an entry of a set is.

/// A set or map of a table that updates change.
pub(crate) trait Named: Copy + Ord {
    /// Its name in the kernel.
    fn name(self) -> &'static str;
}

/// One entry: a key, or in a set of intervals the first key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Entry<S> {
    pub(crate) set: S,
    pub(crate) key: Vec<u8>,
    /// In a set of intervals, the first key behind; none where nothing lies behind.
    pub(crate) end: Option<Vec<u8>>,
    /// In a map, what the key leads to.
    pub(crate) data: Vec<u8>,
}

/// What goes and what comes if sorted entries become others.
pub(crate) fn difference<S: Named>(old: Vec<Entry<S>>, new: Vec<Entry<S>>) -> (Vec<Entry<S>>, Vec<Entry<S>>) {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    loop {
        match (old.peek(), new.peek()) {
            (Some(before), Some(after)) if before == after => {
                old.next();
                new.next();
            }
            (Some(before), Some(after)) if before < after => gone.extend(old.next()),
            (Some(_), Some(_)) | (None, Some(_)) => come.extend(new.next()),
            (Some(_), None) => gone.extend(old.next()),
            (None, None) => return (gone, come),
        }
    }
}
