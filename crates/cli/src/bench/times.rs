//! What was timed, and how it is told.

use super::super::say;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Times of one program.
pub(super) struct Times {
    /// What copying the weights to the device took.
    pub(super) upload: f64,
    pub(super) bind: f64,
    /// By phase; one where a program has none.
    pub(super) phases: Vec<PhaseTimes>,
}

/// Times of a program while a phase lasts.
pub(super) struct PhaseTimes {
    /// Where it begins, on the axis of the program's phases.
    pub(super) from: f32,
    /// The share of a run's calls that it holds, by the model's own sampler.
    pub(super) share: f64,
    /// The first call, which touches the weights and fills tables.
    pub(super) first: f64,
    /// The other calls, fastest first.
    pub(super) calls: Vec<f64>,
    /// What each kind of op took in one more call, slowest first.
    pub(super) ops: Vec<(String, Work)>,
    /// What every op's time holds beside the op: the time between two marks.
    pub(super) mark: f64,
}

/// What ops of a kind did together in one call.
#[derive(Clone, Copy, Default)]
pub(super) struct Work {
    pub(super) seconds: f64,
    /// Arithmetic operations of matrix products.
    pub(super) operations: f64,
    /// Bytes of operands and results, weights not counted.
    pub(super) bytes: f64,
}

impl Work {
    /// Adds a share of other work.
    fn add(&mut self, other: &Work, share: f64) {
        self.seconds += share * other.seconds;
        self.operations += share * other.operations;
        self.bytes += share * other.bytes;
    }

    /// How fast that was, in the unit that bounds it.
    fn rate(&self) -> String {
        match self.operations {
            0.0 => format!("{:8.1} GB/s", self.bytes / self.seconds / 1e9),
            operations => format!("{:8.2} TOP/s", operations / self.seconds / 1e12),
        }
    }
}

impl PhaseTimes {
    fn median(&self) -> f64 {
        self.calls[self.calls.len() / 2]
    }

    fn json(&self) -> Value {
        let ops: BTreeMap<_, _> = self.ops.iter().map(|(op, w)| (op, w.seconds)).collect();
        json!({
            "from": self.from, "share": self.share, "first": self.first, "median": self.median(), "best": self.calls[0],
            "ops": ops,
        })
    }
}

impl Times {
    /// A mean over calls: phases count by their shares of them.
    fn mean(&self, of: impl Fn(&PhaseTimes) -> f64) -> f64 {
        self.phases.iter().map(|phase| phase.share * of(phase)).sum()
    }

    fn median(&self) -> f64 {
        self.mean(PhaseTimes::median)
    }

    fn best(&self) -> f64 {
        self.mean(|phase| phase.calls[0])
    }

    /// What each kind of op takes in a call, in the mean, slowest first.
    fn ops(&self) -> Vec<(String, Work)> {
        let mut by_op: BTreeMap<&str, Work> = BTreeMap::new();
        for phase in &self.phases {
            for (op, work) in &phase.ops {
                by_op.entry(op).or_default().add(work, phase.share);
            }
        }
        slowest_first(by_op.into_iter().map(|(op, work)| (op.to_owned(), work)))
    }

    pub(super) fn json(&self) -> Value {
        let all = self.ops();
        let ops: BTreeMap<_, _> = all.iter().map(|(op, w)| (op, w.seconds)).collect();
        let work: BTreeMap<_, _> =
            all.iter().map(|(op, w)| (op, json!({ "operations": w.operations, "bytes": w.bytes }))).collect();
        let phases = (self.phases.len() > 1).then(|| self.phases.iter().map(PhaseTimes::json).collect::<Vec<_>>());
        json!({
            "upload": self.upload, "bind": self.bind, "first": self.phases[0].first, "median": self.median(), "best": self.best(),
            "ops": ops, "work": work, "mark": self.phases[0].mark, "phases": phases,
        })
    }

    /// Prints them; `ahead`: whether they are a device's, whose ops' times hold those of marks.
    pub(super) fn print(&self, what: &str, axis: &str, ahead: bool) {
        let PhaseTimes { first, calls, mark, .. } = &self.phases[0];
        let upload = if ahead { format!("weights to the device {:.2} ms, ", self.upload * 1e3) } else { String::new() };
        say(format_args!(
            "{what}: median {:.2} ms, best {:.2} ms of {}; {upload}bind {:.2} ms, first call {:.2} ms",
            self.median() * 1e3,
            self.best() * 1e3,
            calls.len(),
            self.bind * 1e3,
            first * 1e3
        ));
        for phase in self.phases.iter().filter(|_| self.phases.len() > 1) {
            let (from, share, ms) = (phase.from, 100.0 * phase.share, phase.median() * 1e3);
            say(format_args!("  from {axis} {from} on, {share:.1} % of the calls: median {ms:.2} ms"));
        }
        let ops = self.ops();
        let total: f64 = ops.iter().map(|(_, w)| w.seconds).sum();
        for (op, w) in &ops {
            let (ms, share) = (w.seconds * 1e3, 100.0 * w.seconds / total);
            say(format_args!("  {op:<22} {ms:9.3} ms  {share:5.1} %  {}", w.rate()));
        }
        if ahead {
            say(format_args!("  each op's time holds a mark's, {:.2} us", mark * 1e6));
        }
    }
}

pub(super) fn slowest_first(ops: impl Iterator<Item = (String, Work)>) -> Vec<(String, Work)> {
    let mut ops: Vec<_> = ops.collect();
    ops.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    ops
}
