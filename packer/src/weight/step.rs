//! Applying steps to a weight's elements, and undoing them.
//!
//! Which steps fit together: [`Step::ToFileOrder`] comes first or not at all, a weight of four axes with any step has it,
//! and a weight is split once at most.

use super::rotate::Matrix;
use super::{Channels, Step, order, scale};
use std::fmt::Display;

/// A tensor's axes, outermost first, and its elements, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Elements {
    /// Axes, outermost first.
    pub dims: Vec<usize>,
    /// As many as the axes say.
    pub values: Vec<f32>,
}

/// Why a step cannot be applied to a weight, or undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// What the step needs.
    pub expected: String,
    /// What there is instead.
    pub got: String,
}

impl Misfit {
    /// A step that needs `expected` and finds `got`.
    pub fn new(expected: impl Display, got: impl Display) -> Self {
        Misfit { expected: expected.to_string(), got: got.to_string() }
    }
}

/// The elements of the tensor called so in the file, which is a parameter of a step.
pub type Parameters<'a> = &'a dyn Fn(&str) -> Result<Elements, Misfit>;

/// One of the tensors of the file that a weight was stored as, and what was done to it.
pub type Part<'a> = (&'a [Step], Elements);

/// Applies `steps` in order.
///
/// # Errors
/// For the first step that does not fit, or if the result is not finite.
pub fn apply(steps: &[Step], source: Elements, parameters: Parameters) -> Result<Elements, Misfit> {
    check(steps, source.dims.len())?;
    let mut elements = source;
    for step in steps {
        elements = forward(step, elements, parameters)?;
    }
    match elements.values.iter().find(|v| !v.is_finite()) {
        Some(bad) if !steps.is_empty() => Err(Misfit::new("finite weights after all steps", bad)),
        _ => Ok(elements),
    }
}

/// The name under which the source of the tensor called `name` would be in the file: its own, or that of the weight that it
/// is a part of.
pub fn whole_name<'a>(name: &'a str, steps: &'a [Step]) -> &'a str {
    let split = steps.iter().find_map(|step| match step {
        Step::Split { whole, .. } => Some(whole.as_str()),
        _ => None,
    });
    split.unwrap_or(name)
}

/// Axes of the weight that was stored as `parts`, each with its steps and axes in the file, before any step.
///
/// # Errors
/// If the parts are not those of one weight.
pub fn source_dims(parts: &[(&[Step], &[usize])]) -> Result<Vec<usize>, Misfit> {
    let Some(&(steps, dims)) = parts.first() else { return Err(Misfit::new("a tensor", "none")) };
    check(steps, dims.len())?;
    let mut dims = dims.to_vec();
    if let Some(inputs) = dims.last_mut() {
        *inputs = parts.iter().map(|(_, dims)| dims.last().copied().unwrap_or(0)).sum();
    }
    Ok(match dims[..] {
        [o, h, w, i] if steps.first() == Some(&Step::ToFileOrder) => vec![o, i, h, w],
        _ => dims,
    })
}

/// The weight that was stored as `parts`, before any step: the inverse of [`apply`].
///
/// # Errors
/// For the first step that does not fit, or if the parts are not those of one weight.
pub fn restore(parts: Vec<Part>, parameters: Parameters) -> Result<Elements, Misfit> {
    let mut whole: Option<(&[Step], Elements)> = None;
    let mut pieces = Vec::new();
    for (steps, mut elements) in parts {
        check(steps, elements.dims.len())?;
        let at = steps.iter().position(|step| matches!(step, Step::Split { .. }));
        let (before, after) = steps.split_at(at.map_or(0, |at| at + 1));
        for step in after.iter().rev() {
            elements = backward(step, elements, parameters)?;
        }
        match before.split_last() {
            Some((&Step::Split { first, count, .. }, before)) => pieces.push((first, count, before, elements)),
            _ => whole = Some((before, elements)),
        }
    }
    let (before, mut elements) = match whole {
        Some(whole) if pieces.is_empty() => whole,
        Some(_) => return Err(Misfit::new("parts of one weight", "a whole weight and parts of it")),
        None => join(pieces)?,
    };
    for step in before.iter().rev() {
        elements = backward(step, elements, parameters)?;
    }
    Ok(elements)
}

/// The parts of a weight side by side, and the steps before it was split.
fn join(mut pieces: Vec<(u64, u64, &[Step], Elements)>) -> Result<(&[Step], Elements), Misfit> {
    pieces.sort_by_key(|(first, ..)| *first);
    let Some((_, _, before, model)) = pieces.first() else { return Err(Misfit::new("a tensor", "none")) };
    let (before, mut dims) = (*before, model.dims.clone());
    let mut inputs = 0;
    for (first, count, steps, Elements { dims: own, .. }) in &pieces {
        let outer = own.len() >= 2 && own.len() == dims.len() && own[..own.len() - 1] == dims[..dims.len() - 1];
        if !outer || *steps != before || (*first, *count) != (inputs, own.last().map_or(0, |&n| n as u64)) {
            let got = format!("inputs {first} and {count} more, of axes {own:?}, after {inputs} inputs");
            return Err(Misfit::new("parts of one weight, without gaps", got));
        }
        inputs += count;
    }
    if let Some(last) = dims.last_mut() {
        *last = inputs as usize;
    }
    let rows: usize = dims[..dims.len() - 1].iter().product();
    let mut values = Vec::with_capacity(rows * inputs as usize);
    for row in 0..rows {
        for (_, count, _, part) in &pieces {
            let n = *count as usize;
            values.extend_from_slice(&part.values[row * n..(row + 1) * n]);
        }
    }
    Ok((before, Elements { dims, values }))
}

/// Checks that `steps` fit each other and a weight of so many axes.
fn check(steps: &[Step], axes: usize) -> Result<(), Misfit> {
    let turned = steps.first() == Some(&Step::ToFileOrder);
    if steps.iter().skip(1).any(|step| *step == Step::ToFileOrder) || turned && axes != 4 {
        return Err(Misfit::new("to_file_order first, once, of four axes", format!("{steps:?} of {axes} axes")));
    }
    if axes == 4 && !turned && !steps.is_empty() {
        return Err(Misfit::new("to_file_order first", format!("{steps:?}")));
    }
    if steps.iter().filter(|step| matches!(step, Step::Split { .. })).count() > 1 {
        return Err(Misfit::new("one split at most", format!("{steps:?}")));
    }
    Ok(())
}

/// Axes after `step` on a weight of axes `dims`.
pub(super) fn dims_after(step: &Step, mut dims: Vec<usize>) -> Vec<usize> {
    match (step, &mut dims[..]) {
        (Step::ToFileOrder, [_, rest @ ..]) => rest.rotate_left(1),
        (Step::Split { count, .. }, [.., inputs]) => *inputs = *count as usize,
        _ => {}
    }
    dims
}

/// Number of the channels, and of the elements from one to the next.
fn channels(dims: &[usize], which: Channels) -> Result<(usize, usize), Misfit> {
    match (which, dims) {
        (Channels::Output, [o, inner @ ..]) => Ok((*o, inner.iter().product())),
        (Channels::Input, [_, .., i]) => Ok((*i, 1)),
        _ => Err(Misfit::new("a weight with such channels", format!("axes {dims:?}"))),
    }
}

fn forward(step: &Step, mut elements: Elements, parameters: Parameters) -> Result<Elements, Misfit> {
    match step {
        Step::ToFileOrder => return Ok(order::to_file_order(elements)),
        Step::Interleave => elements.values = order::interleave(&elements.values, row_of_pairs(&elements.dims)?),
        Step::Scale { .. } | Step::Rotate { .. } => rework(step, &mut elements, parameters, false)?,
        Step::Split { first, count, .. } => {
            let (inputs, _) = channels(&elements.dims, Channels::Input)?;
            let Some(kept) = first.checked_add(*count).filter(|&end| *count > 0 && end <= inputs as u64) else {
                return Err(Misfit::new(format!("some of {inputs} inputs"), format!("{count} from {first} on")));
            };
            let range = *first as usize..kept as usize;
            elements.values =
                elements.values.chunks_exact(inputs).flat_map(|row| &row[range.clone()]).copied().collect();
            elements.dims = dims_after(step, elements.dims);
        }
    }
    Ok(elements)
}

fn backward(step: &Step, mut elements: Elements, parameters: Parameters) -> Result<Elements, Misfit> {
    match step {
        Step::ToFileOrder => return Ok(order::from_file_order(elements)),
        Step::Interleave => elements.values = order::take_apart(&elements.values, row_of_pairs(&elements.dims)?),
        Step::Scale { .. } | Step::Rotate { .. } => rework(step, &mut elements, parameters, true)?,
        // Parts are joined by `restore`, which looks for them first.
        Step::Split { .. } => return Err(Misfit::new("one split at most", "two")),
    }
    Ok(elements)
}

/// Elements in a row of a weight with an even number of rows.
fn row_of_pairs(dims: &[usize]) -> Result<usize, Misfit> {
    match channels(dims, Channels::Output)? {
        (rows, row) if rows.is_multiple_of(2) && row > 0 => Ok(row),
        _ => Err(Misfit::new("an even number of outputs", format!("axes {dims:?}"))),
    }
}

/// A step that changes elements where they lie, or its inverse if `back`.
fn rework(step: &Step, elements: &mut Elements, parameters: Parameters, back: bool) -> Result<(), Misfit> {
    match step {
        Step::Scale { channels: which, by, divide } => {
            let (n, inner) = channels(&elements.dims, *which)?;
            let factors = parameters(by)?;
            if factors.values.len() != n || n * inner == 0 {
                return Err(Misfit::new(format!("{n} factors"), format!("{} in {by}", factors.values.len())));
            }
            scale::scale(&mut elements.values, &factors.values, inner, *divide != back)
        }
        Step::Rotate { channels: which, by } => {
            let (n, inner) = channels(&elements.dims, *which)?;
            let matrix = Matrix::new(by, parameters)?;
            if !n.is_multiple_of(matrix.size()) || n * inner == 0 {
                return Err(Misfit::new(format!("channels in runs of {}", matrix.size()), n));
            }
            matrix.apply(&mut elements.values, inner, back);
            Ok(())
        }
        Step::ToFileOrder | Step::Interleave | Step::Split { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Rotation;
    use super::*;

    fn source(dims: &[usize]) -> Elements {
        let n: usize = dims.iter().product();
        Elements { dims: dims.to_vec(), values: (0..n).map(|i| (i * 37 % 101) as f32 - 50.0).collect() }
    }

    /// `factors` are powers of two; there is nothing else.
    fn parameters(name: &str) -> Result<Elements, Misfit> {
        let Some(n) = name.strip_prefix("factors").and_then(|n| n.parse().ok()) else {
            return Err(Misfit::new("a tensor", name));
        };
        Ok(Elements { dims: vec![n], values: (0..n).map(|i| 2f32.powi(i as i32 % 7 - 3)).collect() })
    }

    fn scale(channels: Channels, by: &str) -> Step {
        Step::Scale { channels, by: by.into(), divide: false }
    }

    fn part(first: u64, count: u64) -> Step {
        Step::Split { whole: "w".into(), first, count }
    }

    #[test]
    fn sequences_come_back_exactly() {
        use Channels::{Input, Output};
        for (dims, steps) in [
            (vec![6, 4], vec![]),
            (vec![6, 4], vec![Step::Interleave]),
            (vec![6], vec![Step::Interleave, scale(Output, "factors6")]),
            (vec![6, 4], vec![scale(Input, "factors4"), Step::Interleave, scale(Output, "factors6")]),
            (vec![6, 5, 3, 3], vec![Step::ToFileOrder, scale(Input, "factors5"), scale(Output, "factors6")]),
            (vec![6, 5, 3, 3], vec![Step::ToFileOrder, Step::Interleave]),
        ] {
            let source = source(&dims);
            let stored = apply(&steps, source.clone(), &parameters).unwrap();
            assert_eq!(stored.dims, steps.iter().fold(dims.clone(), |dims, step| dims_after(step, dims)), "{steps:?}");
            assert_eq!(source_dims(&[(&steps, &stored.dims)]).unwrap(), dims);
            assert_eq!(restore(vec![(&steps, stored)], &parameters).unwrap(), source, "{steps:?}");
        }
    }

    #[test]
    fn inputs_of_a_kernel_are_its_last_axis_in_the_file() {
        let steps = [Step::ToFileOrder, scale(Channels::Input, "factors5")];
        let scaled = apply(&steps, source(&[2, 5, 1, 3]), &parameters).unwrap();
        for (i, (v, plain)) in scaled.values.iter().zip(order::to_file_order(source(&[2, 5, 1, 3])).values).enumerate()
        {
            assert_eq!(*v, plain * 2f32.powi((i % 5) as i32 - 3));
        }
    }

    #[test]
    fn a_split_weight_is_joined_whatever_was_done_to_its_parts() {
        for (dims, before) in [(vec![4, 7], vec![]), (vec![4, 7, 3, 2], vec![Step::ToFileOrder])] {
            let source = source(&dims);
            let steps = |split, more: &[Step]| [&before[..], &[split], more].concat();
            let a = steps(part(0, 3), &[scale(Channels::Input, "factors3")]);
            let b = steps(part(3, 4), &[scale(Channels::Output, "factors4"), Step::Interleave]);
            let [first, second] = [&a, &b].map(|steps| apply(steps, source.clone(), &parameters).unwrap());
            assert_eq!((first.dims.last(), second.dims.last()), (Some(&3), Some(&4)));
            assert_eq!(source_dims(&[(&a, &first.dims), (&b, &second.dims)]).unwrap(), dims);
            // In any order.
            let parts: Vec<Part> = vec![(&b, second), (&a, first)];
            assert_eq!(restore(parts, &parameters).unwrap(), source);
        }
        assert_eq!(whole_name("unet/x", &[part(0, 3)]), "w");
        assert_eq!(whole_name("unet/x", &[Step::Interleave]), "unet/x");
    }

    #[test]
    fn steps_that_do_not_fit_are_refused_both_ways() {
        use Channels::{Input, Output};
        let rotate = |size| Step::Rotate { channels: Input, by: Rotation::Hadamard { size, seed: 0 } };
        for (dims, steps) in [
            (vec![3, 4], vec![Step::Interleave]),
            (vec![3, 4], vec![Step::ToFileOrder]),
            (vec![3, 4, 1, 1], vec![scale(Input, "factors4")]),
            (vec![3, 4, 1, 1], vec![Step::ToFileOrder, Step::ToFileOrder]),
            (vec![3, 4], vec![scale(Input, "factors3")]),
            (vec![3, 4], vec![scale(Output, "nothing")]),
            (vec![3], vec![scale(Input, "factors3")]),
            (vec![3, 12], vec![rotate(8)]),
            (vec![3, 4], vec![part(0, 2), part(0, 1)]),
        ] {
            assert!(apply(&steps, source(&dims), &parameters).is_err(), "{dims:?} {steps:?}");
            assert!(restore(vec![(&steps, source(&dims))], &parameters).is_err(), "{dims:?} {steps:?}");
        }
        for split in [part(3, 2), part(0, 0), part(u64::MAX, 2)] {
            assert!(apply(&[split], source(&[3, 4]), &parameters).is_err());
        }
        for steps in [vec![part(1, 2)], vec![part(0, 3)]] {
            assert!(restore(vec![(&steps, source(&[3, 2]))], &parameters).is_err(), "{steps:?}: a gap, a wrong count");
        }
        let large = Elements { dims: vec![1, 1], values: vec![3e38] };
        let double = Step::Scale { channels: Input, by: "factors1".into(), divide: true };
        assert!(apply(&[double], large, &parameters).is_err(), "it becomes infinite");
    }
}
