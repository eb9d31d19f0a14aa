//! Which addresses belong to mapped files: written by whoever maps, read by a signal handler.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The addresses of one map; both zero while unused. Ranges are never freed, only used again, so that a handler may walk
/// them at any time.
struct Range {
    start: AtomicUsize,
    end: AtomicUsize,
    next: OnceLock<Box<Range>>,
}

static FIRST: Range = Range::unused();
/// The path of every registered range, by its start; held by writers, so that one at a time changes ranges.
static PATHS: Mutex<Vec<(usize, PathBuf)>> = Mutex::new(Vec::new());

impl Range {
    const fn unused() -> Self {
        Range { start: AtomicUsize::new(0), end: AtomicUsize::new(0), next: OnceLock::new() }
    }

    fn holds(&self, address: usize) -> bool {
        (self.start.load(SeqCst)..self.end.load(SeqCst)).contains(&address)
    }
}

/// Every range, used or not. Takes no lock and allocates nothing.
fn ranges() -> impl Iterator<Item = &'static Range> {
    std::iter::successors(Some(&FIRST), |range| range.next.get().map(|next| &**next))
}

/// A registered range; dropping it takes it out.
pub(super) struct Registered(&'static Range);

/// Registers the `len` bytes at `start`, a map of `path`.
pub(super) fn register(start: usize, len: usize, path: &Path) -> Registered {
    let mut paths = PATHS.lock().unwrap_or_else(PoisonError::into_inner);
    let free = ranges().find(|range| range.end.load(SeqCst) == 0);
    let range = free.unwrap_or_else(|| {
        let last = ranges().last().unwrap_or(&FIRST);
        last.next.get_or_init(|| Box::new(Range::unused()))
    });
    paths.push((start, path.to_owned()));
    range.start.store(start, SeqCst);
    // Last: only now the range holds anything.
    range.end.store(start + len, SeqCst);
    Registered(range)
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut paths = PATHS.lock().unwrap_or_else(PoisonError::into_inner);
        let start = self.0.start.load(SeqCst);
        self.0.end.store(0, SeqCst);
        self.0.start.store(0, SeqCst);
        if let Some(i) = paths.iter().position(|(at, _)| *at == start) {
            paths.swap_remove(i);
        }
    }
}

/// Whether `address` is inside a registered map. Safe to call in a signal handler.
pub(super) fn holds(address: usize) -> bool {
    ranges().any(|range| range.holds(address))
}

/// The file mapped at `address`, which a registered map holds. Not for signal handlers.
pub(super) fn path(address: usize) -> Option<PathBuf> {
    let paths = PATHS.lock().unwrap_or_else(PoisonError::into_inner);
    let start = ranges().find(|range| range.holds(address))?.start.load(SeqCst);
    paths.iter().find(|(at, _)| *at == start).map(|(_, path)| path.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_go_and_are_used_again() {
        // Addresses that no map can have beside these tests'.
        let base = usize::MAX / 2;
        let register = |i: usize, len| register(base + 100 * i, len, format!("{i}").as_ref());
        let mut all: Vec<_> = (0..20).map(|i| register(i, 50)).collect();
        assert!(holds(base) && holds(base + 49) && !holds(base + 50) && holds(base + 1949));
        assert_eq!(path(base + 720), Some("7".into()));
        all.remove(7);
        assert!(!holds(base + 720) && path(base + 720).is_none());
        let slots = ranges().count();
        all.push(register(7, 10));
        assert_eq!((ranges().count(), path(base + 709)), (slots, Some("7".into())));
        drop(all);
        assert!(!holds(base));
    }
}
