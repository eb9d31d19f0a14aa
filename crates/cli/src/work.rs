//! What hoisting takes out of the step loop, as `aquatint info` tells it.

use super::say;
use aquatint::Result;
use aquatint::model::Model;
use aquatint::pipeline::Plans;
use aquatint::raw::program::{Rate, Role};
use aquatint::raw::work::{Group, groups};
use serde_json::{Value, json};

/// Paths that a line of text names.
const SHOWN: usize = 6;

/// The work of a network of the step loop.
pub(super) struct Work {
    role: Role,
    /// Model calls per run.
    calls: usize,
    groups: Vec<Group>,
}

impl Work {
    /// Of every network that `plans` have in the step loop.
    ///
    /// # Errors
    /// If the shapes of a program do not fit, which plans have proven.
    pub(super) fn of<D: AsRef<[u8]>>(model: &Model<'_, D>, plans: &Plans) -> Result<Vec<Work>> {
        let types: Vec<_> = model.packed().tensors().iter().map(|t| t.ty()).collect();
        let one = |plan: &aquatint::raw::plan::Plan| {
            let program = model.packed().program(plan.role)?;
            let groups = groups(program, &types, &plan.binding.dims)?;
            Ok(Work { role: plan.role, calls: plan.binding.calls, groups })
        };
        plans.denoisers.iter().map(one).collect()
    }

    /// Ops and floating point operations of one call at rates that `which` takes.
    fn sum(&self, which: impl Fn(Rate) -> bool) -> (usize, u64) {
        let chosen = self.groups.iter().filter(|group| which(group.rate));
        chosen.fold((0, 0), |(ops, flops), group| (ops + group.ops, flops + group.flops))
    }

    /// Floating point operations of a run: what depends on a timestep is done as often as there are steps, though not in them.
    fn per_run(&self) -> u64 {
        let of = |rate: Rate| self.sum(|r| r == rate).1;
        self.calls as u64 * (of(Rate::Loop) + of(Rate::Step)) + of(Rate::Prompt) + of(Rate::Bind)
    }

    /// As JSON: `before` all of the program in each step, `after` what is left in the loop, and each group that is not.
    pub(super) fn json(&self) -> Value {
        let pair = |(ops, flops): (usize, u64)| json!({ "ops": ops, "flops": flops });
        let hoisted = self.groups.iter().filter(|group| group.rate != Rate::Loop);
        let hoisted = hoisted.map(|group| {
            json!({ "once_per": once_per(group.rate), "path": group.path, "ops": group.ops, "flops": group.flops })
        });
        json!({
            "network": self.role.name(),
            "steps": self.calls,
            "per_step": { "before": pair(self.sum(|_| true)), "after": pair(self.sum(|rate| rate == Rate::Loop)) },
            "flops_per_run": { "before": self.calls as u64 * self.sum(|_| true).1, "after": self.per_run() },
            "hoisted": hoisted.collect::<Vec<_>>(),
        })
    }

    /// In words.
    pub(super) fn say(&self, batch: usize) {
        let (before, after) = (self.sum(|_| true), self.sum(|rate| rate == Rate::Loop));
        say(format_args!(
            "\n{} in each of {} steps, batch {batch}: {} of {} ops, {} of {}",
            self.role.name(),
            self.calls,
            after.0,
            before.0,
            words(after.1),
            words(before.1)
        ));
        for rate in [Rate::Step, Rate::Prompt, Rate::Bind] {
            let (ops, flops) = self.sum(|of| of == rate);
            if ops == 0 {
                continue;
            }
            // Those that cost most first.
            let mut paths: Vec<&Group> = self.groups.iter().filter(|group| group.rate == rate).collect();
            paths.sort_by_key(|group| std::cmp::Reverse((group.flops, group.ops)));
            let more = paths.len().saturating_sub(SHOWN);
            let shown: Vec<&str> = paths.iter().take(SHOWN).map(|group| &group.path[..]).collect();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let when = if rate == Rate::Step { "timestep, many at once" } else { once_per(rate) };
            let flops = words(flops);
            say(format_args!("  once per {when}: {ops} ops, {flops}: {}{more}", shown.join(", ")));
        }
    }
}

/// What nodes of a rate run once per.
fn once_per(rate: Rate) -> &'static str {
    match rate {
        Rate::Bind => "shape",
        Rate::Prompt => "prompt",
        Rate::Step => "timestep",
        Rate::Loop => "step",
    }
}

fn words(flops: u64) -> String {
    match flops {
        0..100_000_000 => format!("{:.3} MFLOP", flops as f64 / 1e6),
        _ => format!("{:.3} GFLOP", flops as f64 / 1e9),
    }
}
