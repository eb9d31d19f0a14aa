//! One item of each class, as little error as possible within a budget of size: the multiple-choice knapsack.

/// Most places of the table over sizes.
const PLACES: u64 = 20_000;

/// What a choice takes and costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Item {
    /// How much of the budget: bytes, or nanoseconds.
    pub size: u64,
    /// What it adds to the error.
    pub error: f64,
}

/// An item of every class.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// The chosen item of each class.
    pub choices: Vec<usize>,
    /// Their sizes together.
    pub size: u64,
    /// Their error.
    pub error: f64,
    /// What no assignment of at most the budget has less error than.
    pub bound: f64,
}

impl Solution {
    fn of(classes: &[Vec<Item>], choices: Vec<usize>) -> Self {
        let chosen = || classes.iter().zip(&choices).map(|(items, &choice)| items[choice]);
        let (size, error) = (chosen().map(|item| item.size).sum(), chosen().map(|item| item.error).sum());
        Solution { choices, size, error, bound: error }
    }
}

/// All assignments that are best at some price per size, from the smallest to that of least error: the lower convex hull of what
/// can be had. Each is the best of its size.
pub fn front(classes: &[Vec<Item>]) -> Vec<Solution> {
    // On the hull of each class a step to the next item saves error at a rate; steps of all classes in the order of rates make
    // the hull of their sums.
    let hulls: Vec<Vec<usize>> = classes.iter().map(|items| hull(items)).collect();
    let mut steps: Vec<(f64, usize, usize)> = Vec::new();
    for (class, hull) in hulls.iter().enumerate() {
        steps.extend(hull.windows(2).map(|pair| (rate(&classes[class], pair[0], pair[1]), class, pair[1])));
    }
    // Equal rates of one class stay in order: the sort is stable.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut choices: Vec<usize> = hulls.iter().map(|hull| hull[0]).collect();
    let mut front = vec![Solution::of(classes, choices.clone())];
    for (_, class, item) in steps {
        choices[class] = item;
        front.push(Solution::of(classes, choices.clone()));
    }
    front
}

/// Error saved per size from one item to a larger one.
fn rate(items: &[Item], from: usize, to: usize) -> f64 {
    (items[from].error - items[to].error) / (items[to].size - items[from].size) as f64
}

/// The items on the lower convex hull, from the smallest to that of least error.
fn hull(items: &[Item]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by(|&a, &b| (items[a].size.cmp(&items[b].size)).then(items[a].error.total_cmp(&items[b].error)));
    let mut hull: Vec<usize> = Vec::new();
    for next in order {
        if hull.last().is_some_and(|&last| items[last].error <= items[next].error) {
            continue;
        }
        while let [.., before, last] = hull[..]
            && rate(items, before, last) <= rate(items, last, next)
        {
            hull.pop();
        }
        hull.push(next);
    }
    hull
}

/// The assignment of least error within `budget`; none if there is none. Where sizes have few multiples of their common
/// divisor it is exact; else within the rounding of sizes to a 20,000th of what there is to decide about, and the bound tells.
pub fn solve(classes: &[Vec<Item>], budget: u64) -> Option<Solution> {
    let front = front(classes);
    let at = front.iter().rposition(|solution| solution.size <= budget)?;
    let bound = match front.get(at + 1) {
        // Between neighbours on the hull nothing is below the line.
        Some(next) => {
            let (here, share) = (&front[at], (budget - front[at].size) as f64 / (next.size - front[at].size) as f64);
            here.error + share * (next.error - here.error)
        }
        None => front[at].error,
    };
    let exact = table(classes, budget);
    let best = if exact.error < front[at].error { exact } else { front[at].clone() };
    Some(Solution { bound: bound.min(best.error), ..best })
}

/// The same by a table: the least error of the first classes by the size they take beyond their smallest items.
fn table(classes: &[Vec<Item>], budget: u64) -> Solution {
    let least: Vec<u64> = classes.iter().map(|items| items.iter().map(|item| item.size).min().unwrap_or(0)).collect();
    let extra = |class: usize, item: &Item| item.size - least[class];
    let most = |class: usize| classes[class].iter().map(|item| extra(class, item)).max().unwrap_or(0);
    let room = (budget - least.iter().sum::<u64>()).min((0..classes.len()).map(most).sum());
    let extras = classes.iter().enumerate().flat_map(|(class, items)| items.iter().map(move |item| (class, item)));
    let divisor = extras.map(|(class, item)| extra(class, item)).fold(0, gcd).max(1);
    let step = divisor * room.div_ceil(divisor).div_ceil(PLACES).max(1);
    let places = (room / step) as usize + 1;
    // Of the best assignment that takes at most so much.
    let mut best = vec![0.0; places];
    let mut taken: Vec<Vec<u8>> = Vec::with_capacity(classes.len());
    for (class, items) in classes.iter().enumerate() {
        let mut next = vec![f64::INFINITY; places];
        let mut choice = vec![0; places];
        for (i, item) in items.iter().enumerate() {
            let takes = extra(class, item).div_ceil(step) as usize;
            for place in takes..places {
                let error = best[place - takes] + item.error;
                if error < next[place] {
                    (next[place], choice[place]) = (error, i as u8);
                }
            }
        }
        best = next;
        taken.push(choice);
    }
    let mut place = places - 1;
    let mut choices = vec![0; classes.len()];
    for class in (0..classes.len()).rev() {
        choices[class] = usize::from(taken[class][place]);
        place -= extra(class, &classes[class][choices[class]]).div_ceil(step) as usize;
    }
    Solution::of(classes, choices)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Classes of items by a multiplicative sequence: sizes in units of `unit`, errors that mostly fall with them.
    fn classes(count: usize, items: usize, unit: u64, seed: u64) -> Vec<Vec<Item>> {
        let mut state = seed;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut item =
            |i: u64| Item { size: unit * (1 + i + next(4)), error: next(1000) as f64 / (1000 << (2 * i)) as f64 };
        (0..count).map(|_| (0..items as u64).map(&mut item).collect()).collect()
    }

    /// The least error of all assignments within a budget.
    fn by_trying_all(classes: &[Vec<Item>], budget: u64) -> Option<f64> {
        let Some((first, rest)) = classes.split_first() else { return Some(0.0) };
        let fitting = first.iter().filter(|item| item.size <= budget);
        let errors = fitting.filter_map(|item| Some(item.error + by_trying_all(rest, budget - item.size)?));
        errors.min_by(f64::total_cmp)
    }

    #[test]
    fn nothing_within_the_budget_is_better() {
        for seed in 0..40 {
            let classes = classes(6, 4, if seed % 2 == 0 { 96 } else { 1 }, seed);
            let least: u64 = classes.iter().map(|items| items.iter().map(|i| i.size).min().unwrap()).sum();
            let front = front(&classes);
            let most = front.last().unwrap().size;
            for budget in (least.saturating_sub(5)..most + 60).step_by(1 + (most - least) as usize / 23) {
                let (got, expected) = (solve(&classes, budget), by_trying_all(&classes, budget));
                assert_eq!(got.is_some(), expected.is_some(), "seed {seed}, budget {budget}");
                let Some((got, expected)) = got.zip(expected) else { continue };
                assert!((got.error - expected).abs() < 1e-12, "seed {seed}, budget {budget}: {got:?} for {expected}");
                assert!(got.size <= budget && got.bound <= got.error + 1e-15, "{got:?}");
                assert_eq!(got.choices.len(), 6);
            }
        }
    }

    #[test]
    fn the_front_is_convex_and_its_members_are_the_best_of_their_size() {
        for seed in 0..20 {
            let classes = classes(6, 4, 32, 100 + seed);
            let front = front(&classes);
            for member in &front {
                let expected = by_trying_all(&classes, member.size).unwrap();
                assert!((member.error - expected).abs() < 1e-12, "{member:?} for {expected}");
            }
            let rates: Vec<f64> = front
                .windows(2)
                .map(|pair| (pair[0].error - pair[1].error) / (pair[1].size - pair[0].size) as f64)
                .collect();
            assert!(rates.windows(2).all(|pair| pair[0] >= pair[1] - 1e-15), "{rates:?}");
        }
    }

    /// Sizes without a common divisor are rounded up: the result fits, and the bound tells how good it is at least.
    #[test]
    fn large_problems_are_solved_near_their_bound() {
        let mut classes = classes(200, 4, 1_000_003, 7);
        for (class, items) in classes.iter_mut().enumerate() {
            items.iter_mut().enumerate().for_each(|(i, item)| item.size += (class * 31 + i * 17) as u64);
        }
        let front = front(&classes);
        let budget = (front[0].size + front.last().unwrap().size) / 2;
        let got = solve(&classes, budget).unwrap();
        assert!(got.size <= budget && got.error >= got.bound && got.error <= got.bound * 1.02, "{got:?}");
    }
}
