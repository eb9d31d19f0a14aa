//! Phases of a configuration: what is other from some time of a run on.

use super::entries::Raw;
use super::rules::Rule;
use super::{Choice, ConfigError, LayerSpec, QConfig};
use aquatint::raw::program::CurveAxis;

/// What is other from a time on, until the next phase begins.
#[derive(Clone, Debug)]
pub struct Phase {
    /// Where it begins.
    pub start: f32,
    /// For layers that no entry of it names; without one they stay as they are.
    pub(super) default: Option<Choice>,
    pub(super) entries: Vec<(String, LayerSpec)>,
    /// What decides after them: the first that matches.
    pub(super) rules: Vec<Rule>,
}

/// The phases after the first, which begins with the run.
#[derive(Clone, Debug, Default)]
pub struct Phases {
    /// What positions count.
    pub axis: CurveAxis,
    /// In order, none at or before 0.
    pub later: Vec<Phase>,
}

impl Phases {
    /// The phases that `list` spells; `entries` reads what else a phase holds.
    ///
    /// # Errors
    /// If a phase does not say when it begins, or not on the axis of the others, or none after the one before.
    pub(super) fn read(
        origin: &str,
        list: Raw,
        entries: &dyn Fn(Vec<(String, Raw)>) -> Result<QConfig, ConfigError>,
    ) -> Result<Self, ConfigError> {
        let syntax = |reason: String| ConfigError::Syntax { origin: origin.into(), reason };
        let Raw::List(list) = list else { return Err(syntax("`phases` is expected to be a list of maps".into())) };
        let mut phases = Phases::default();
        for (i, phase) in list.into_iter().enumerate() {
            let Raw::Map(mut map) = phase else { return Err(syntax(format!("phase {i} is expected to be a map"))) };
            let (axis, start) = start(&mut map).map_err(|got| {
                let expected = "`from`, the share of the steps that are done, or `from_timestep`";
                syntax(format!("phase {i} is expected to begin with one of {expected}, as a number, got {got}"))
            })?;
            if i > 0 && axis != phases.axis {
                return Err(syntax(format!(
                    "phase {i} is expected to begin by {}, as those before",
                    phases.axis.name()
                )));
            }
            let before = phases.later.last().map_or(0.0, |phase: &Phase| phase.start);
            let end = if axis == CurveAxis::StepFraction { 1.0 } else { f32::INFINITY };
            if start <= before || start >= end {
                let below = if end == 1.0 { " and before 1" } else { "" };
                return Err(syntax(format!("phase {i} is expected to begin after {before}{below}, got {start}")));
            }
            let QConfig { default, entries, .. } = entries(map)?;
            if default.is_none() && entries.is_empty() {
                return Err(syntax(format!("phase {i} is expected to change a layer, it has none")));
            }
            phases.axis = axis;
            phases.later.push(Phase { start, default, entries, rules: Vec::new() });
        }
        Ok(phases)
    }

    /// Where all phases begin, the first included; none where there is one.
    pub fn starts(&self) -> Vec<f32> {
        let first = (!self.later.is_empty()).then_some(0.0);
        first.into_iter().chain(self.later.iter().map(|phase| phase.start)).collect()
    }
}

/// Takes the start out of a phase's map: its axis and position, or what there is instead.
fn start(map: &mut Vec<(String, Raw)>) -> Result<(CurveAxis, f32), String> {
    let keys = [("from", CurveAxis::StepFraction), ("from_timestep", CurveAxis::Timestep)];
    let mut found = Vec::new();
    for (key, axis) in keys {
        if let Some(at) = map.iter().position(|(name, _)| name == key) {
            found.push((axis, map.remove(at).1));
        }
    }
    match (found.pop(), found.pop()) {
        (None, _) => Err("neither".into()),
        (Some(_), Some(_)) => Err("both".into()),
        (Some((axis, Raw::Float(start))), None) if start.is_finite() => Ok((axis, start as f32)),
        (Some((axis, Raw::Int(start))), None) => Ok((axis, start as f32)),
        (Some((_, other)), None) => Err(format!("{other:?}")),
    }
}
