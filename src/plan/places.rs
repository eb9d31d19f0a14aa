//! Where every value lies in the arena.

use super::site::{Site, args};
use super::values::Values;
use super::{ALIGN, Binding, PlannedCurve};
use crate::backend::args::{Floats, OpArgs, Slot};
use crate::program::{QuantizeRange, Rate, Tensor, Value};

/// Places in the arena.
#[derive(Clone)]
pub struct Places {
    /// First byte of each value; 0 for those that have no place yet.
    values: Vec<usize>,
    /// First byte of the table of scales and zero points of each node that has a curve.
    pub curves: Vec<usize>,
    /// First byte of the u32 condition of each sample.
    pub condition: Slot,
    /// First byte of the caller's part.
    pub reserved: usize,
    /// Bytes of what is kept.
    kept: usize,
    /// Bytes of arena.
    pub arena: usize,
}

impl Places {
    /// Lays out what is kept in all `phases`.
    pub fn kept(phases: &[Values<'_>], binding: &Binding) -> Self {
        let values = &phases[0];
        let mut end = 0;
        let mut bump = |bytes: usize| {
            let at = end;
            end = (at + bytes).next_multiple_of(ALIGN);
            at
        };
        let reserved = bump(binding.reserve);
        let condition = Slot { at: bump(binding.dims.batch * 4), stride: 0 };
        let mut at = vec![0; values.types.len()];
        for i in (0..at.len()).filter(|&i| values.kept[i]) {
            at[i] = bump(values.room[i]);
        }
        let mut curve_at = vec![0; values.program.nodes.len()];
        for (i, at) in curve_at.iter_mut().enumerate() {
            if phases.iter().any(|values| curve(values, i).is_some()) {
                *at = bump(values.window * 8);
            }
        }
        Places { values: at, curves: curve_at, condition, reserved, kept: end, arena: end }
    }

    /// The curves of one phase that are to be resolved per call.
    pub fn planned_curves(&self, values: &Values<'_>) -> Vec<PlannedCurve> {
        let planned = |(i, &at)| curve(values, i).map(|range| PlannedCurve { range, at });
        self.curves.iter().enumerate().filter_map(planned).collect()
    }

    /// Lays out the scratch of the list of each rate, each value from its node to its last reader and each workspace during its
    /// node; tells the workspace of every node.
    pub fn scratch(&mut self, values: &Values<'_>, workspace: &dyn Fn(&OpArgs<Tensor>) -> usize) -> Vec<usize> {
        let mut workspaces = vec![0; values.program.nodes.len()];
        for rate in [Rate::Bind, Rate::Prompt, Rate::Step, Rate::Loop] {
            let mut blocks = self.blocks(values, rate, workspace);
            self.arena = self.arena.max(self.kept + pack(&mut blocks));
            for b in blocks {
                match b.of {
                    Owner::Value(v) => self.values[v] = self.kept + b.at,
                    Owner::Workspace(n) => workspaces[n] = self.kept + b.at,
                }
            }
        }
        workspaces
    }

    /// The blocks that the list of `rate` needs, with their lifetimes.
    fn blocks(&self, values: &Values<'_>, rate: Rate, workspace: &dyn Fn(&OpArgs<Tensor>) -> usize) -> Vec<Block> {
        let nodes = &values.program.nodes;
        let mut blocks: Vec<Block> = Vec::new();
        let mut block_of = vec![None; values.types.len()];
        let listed = |&i: &usize| values.node_rate(i) == rate && values.needed[i] && !values.is_made_before(i);
        for (now, node) in (0..nodes.len()).filter(listed).enumerate() {
            for v in nodes[node].op.reads() {
                if let Some(b) = block_of[v.0 as usize] {
                    let b: &mut Block = &mut blocks[b];
                    b.last = now;
                }
            }
            let mut push = |bytes: usize, of: Owner| {
                blocks.push(Block { bytes: bytes.next_multiple_of(ALIGN), first: now, last: now, at: 0, of });
                blocks.len() - 1
            };
            let made = values.coded[node].map_or(node, |(reader, _)| reader);
            let own = values.program.inputs.len() + made;
            if !values.kept[own] {
                block_of[own] = Some(push(values.bytes(own), Owner::Value(own)));
            }
            // How much an op needs does not depend on where anything lies.
            let bytes = workspace(&args(&nodes[node].op, &Site::new(values, self, node, 0)));
            if bytes > 0 {
                push(bytes, Owner::Workspace(node));
            }
        }
        blocks
    }

    /// The place of `value` for a node of rate `reader`.
    pub fn slot(&self, values: &Values<'_>, value: Value, reader: Rate) -> Slot {
        Slot { at: self.values[value.0 as usize], stride: values.stride(value, reader) }
    }

    /// `value` as floats, for a node of rate `reader`.
    pub fn floats(&self, values: &Values<'_>, value: Value, reader: Rate) -> Floats {
        let ty = values.seen(value, reader);
        let (slot, element) = (self.slot(values, value, reader), values.elements[value.0 as usize]);
        Floats { slot, rows: ty.rows(), cols: ty.cols(), element }
    }
}

/// The curve that the result of node `i` takes its range from, if it is needed.
fn curve(values: &Values<'_>, i: usize) -> Option<QuantizeRange> {
    values.program.nodes[i].op.curve().filter(|_| values.needed[i])
}

/// What a block is for: a value, or the workspace of a node.
enum Owner {
    Value(usize),
    Workspace(usize),
}

/// A stretch of scratch that is in use from op `first` to op `last` of a list, both included.
struct Block {
    bytes: usize,
    first: usize,
    last: usize,
    at: usize,
    of: Owner,
}

/// Places blocks so that those alive together do not overlap; returns the bytes used.
///
/// Largest first, each at the lowest place that is free during its whole life: simple, and close to the maximum of
/// live bytes for the chains with residual streams that networks are.
fn pack(blocks: &mut [Block]) -> usize {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].bytes), blocks[i].first));
    let mut placed: Vec<usize> = Vec::new();
    let mut end = 0;
    for &i in &order {
        let (first, last, bytes) = (blocks[i].first, blocks[i].last, blocks[i].bytes);
        let mut at = 0;
        // `placed` is sorted by place, so one pass finds the first gap.
        for &j in &placed {
            let other = &blocks[j];
            let apart = other.last < first || last < other.first;
            if !apart && at < other.at + other.bytes {
                if at + bytes <= other.at {
                    break;
                }
                at = other.at + other.bytes;
            }
        }
        blocks[i].at = at;
        end = end.max(at + bytes);
        let slot = placed.partition_point(|&j| blocks[j].at < at);
        placed.insert(slot, i);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_alive_together_never_overlap() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let mut blocks: Vec<Block> = (0..rng.usize(1..40))
                .map(|i| {
                    let first = rng.usize(0..30);
                    let (last, bytes) = (first + rng.usize(0..6), 64 * rng.usize(1..9));
                    Block { bytes, first, last, at: 0, of: Owner::Value(i) }
                })
                .collect();
            let end = pack(&mut blocks);
            let mut live_most = 0;
            for now in 0..40 {
                live_most =
                    live_most.max(blocks.iter().filter(|b| b.first <= now && now <= b.last).map(|b| b.bytes).sum());
            }
            assert!(end >= live_most && end <= blocks.iter().map(|b| b.bytes).sum());
            for (i, a) in blocks.iter().enumerate() {
                assert!(a.at + a.bytes <= end);
                for b in &blocks[i + 1..] {
                    let apart_in_time = a.last < b.first || b.last < a.first;
                    let apart_in_space = a.at + a.bytes <= b.at || b.at + b.bytes <= a.at;
                    assert!(apart_in_time || apart_in_space);
                }
            }
        }
    }

    #[test]
    fn a_chain_needs_two_blocks() {
        let mut blocks: Vec<Block> =
            (0..10).map(|i| Block { bytes: 64, first: i, last: i + 1, at: 0, of: Owner::Value(i) }).collect();
        assert_eq!(pack(&mut blocks), 128);
    }
}
