//! Where diverging lanes meet again: immediate post-dominators of the branches of a function.

use crate::op::{Inst, NOWHERE, Op};

/// Successors of an instruction; `end` stands for leaving the function.
fn successors(inst: &Inst, pc: u32, end: u32, tables: &[Vec<u32>], out: &mut Vec<u32>) {
    out.clear();
    let guarded = inst.guard.is_some();
    match inst.op {
        Op::Branch { target, .. } => out.push(target),
        Op::BranchTable { table, .. } => out.extend(&tables[table as usize]),
        Op::Return { .. } | Op::Exit | Op::Trap => out.push(end),
        _ => {
            out.push(pc + 1);
            return;
        }
    }
    if guarded {
        out.push(pc + 1);
    }
}

/// Sets the meeting point of every branch of the function whose instructions are `range`.
pub(crate) fn set_meets(insts: &mut [Inst], range: std::ops::Range<u32>, tables: &[Vec<u32>]) {
    let (start, end) = (range.start, range.end);
    let count = (end - start + 1) as usize;
    let exit = count - 1;
    let mut before: Vec<Vec<u32>> = vec![Vec::new(); count];
    let mut after: Vec<Vec<u32>> = vec![Vec::new(); count];
    let mut list = Vec::new();
    for pc in start..end {
        successors(&insts[pc as usize], pc, end, tables, &mut list);
        for &next in &list {
            after[(pc - start) as usize].push(next.min(end) - start);
            before[(next.min(end) - start) as usize].push(pc - start);
        }
    }
    // Post-order of the reversed graph from the exit (Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm").
    let mut number = vec![usize::MAX; count];
    let mut order = Vec::with_capacity(count);
    let mut stack = vec![(exit, 0)];
    let mut seen = vec![false; count];
    seen[exit] = true;
    while let Some((node, at)) = stack.pop() {
        if let Some(&next) = before[node].get(at) {
            stack.push((node, at + 1));
            if !seen[next as usize] {
                seen[next as usize] = true;
                stack.push((next as usize, 0));
            }
        } else {
            number[node] = order.len();
            order.push(node);
        }
    }
    let mut dominator = vec![usize::MAX; count];
    dominator[exit] = exit;
    let mut changed = true;
    while changed {
        changed = false;
        for &node in order.iter().rev().filter(|&&node| node != exit) {
            let mut best = usize::MAX;
            for &next in &after[node] {
                let next = next as usize;
                if dominator[next] == usize::MAX {
                    continue;
                }
                best = if best == usize::MAX { next } else { intersect(best, next, &dominator, &number) };
            }
            if dominator[node] != best {
                dominator[node] = best;
                changed = true;
            }
        }
    }
    for pc in start..end {
        let node = dominator[(pc - start) as usize];
        let found = if node == usize::MAX || node == exit { NOWHERE } else { node as u32 + start };
        if let Op::Branch { meet, .. } | Op::BranchTable { meet, .. } = &mut insts[pc as usize].op {
            *meet = found;
        }
    }
}

fn intersect(mut a: usize, mut b: usize, dominator: &[usize], number: &[usize]) -> usize {
    while a != b {
        while number[a] < number[b] {
            a = dominator[a];
        }
        while number[b] < number[a] {
            b = dominator[b];
        }
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Pred;

    fn branch(target: u32, guarded: bool) -> Inst {
        let guard = guarded.then_some(Pred { slot: 0, negated: false });
        Inst { op: Op::Branch { target, meet: 0 }, guard }
    }

    fn meet(inst: &Inst) -> u32 {
        match inst.op {
            Op::Branch { meet, .. } => meet,
            _ => panic!("no branch"),
        }
    }

    #[test]
    fn if_else_and_loop() {
        let nop = Inst { op: Op::Nop, guard: None };
        let exit = Inst { op: Op::Exit, guard: None };
        // 0: @p bra 3; 1: nop; 2: bra 4; 3: nop; 4: nop; 5: @p bra 4; 6: exit
        let mut insts = vec![branch(3, true), nop, branch(4, false), nop, nop, branch(4, true), exit];
        set_meets(&mut insts, 0..7, &[]);
        assert_eq!(meet(&insts[0]), 4);
        assert_eq!(meet(&insts[5]), 6);
        // An early exit leaves nowhere to meet.
        let mut insts = vec![branch(2, true), exit, nop, exit];
        set_meets(&mut insts, 0..4, &[]);
        assert_eq!(meet(&insts[0]), NOWHERE);
    }
}
