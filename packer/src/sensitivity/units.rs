//! Units: the layers that a file has in several precisions, and what they are in each.

use super::choices::Choices;
use super::record::{Probe, Unit};
use crate::error::Result;
use crate::pass::product;
use crate::quantize::{Method, is_counted, quantized_bytes, raw_bytes};
use aquatint::error::Error;
use aquatint::raw::codec::Bits;
use aquatint::raw::format::Packed;
use aquatint::raw::program::{Op, Program, Tensor};
use globset::{Glob, GlobMatcher};

/// Bits of the precision that average bits are relative to.
const PRECISION: u64 = 16;

/// A layer, or a group of layers, with the nodes that change together.
pub(crate) struct Layers {
    /// Their weights in the phase of floats.
    pub weights: Vec<Tensor>,
    /// What is known of it before it is measured.
    pub unit: Unit,
}

impl Layers {
    /// The phases of the nodes of `program` where these layers are as in `phase`, and all others as in `environment`.
    pub fn phases(&self, program: &Program, phase: usize, environment: usize) -> Vec<usize> {
        let own = |op: &Op| product(op).is_some_and(|(weight, ..)| self.weights.contains(&weight));
        program.nodes.iter().map(|node| if own(&node.op) { phase } else { environment }).collect()
    }
}

/// The layers of `packed` that are other in some phase, in the order of its programs; a weight that several nodes use is one.
pub(crate) fn units<D: AsRef<[u8]>>(packed: &Packed<D>, choices: &Choices) -> Vec<Layers> {
    let mut units: Vec<Layers> = Vec::new();
    for program in packed.programs() {
        let phases: Vec<_> = (0..choices.names.len()).map(|choice| program.in_phase(choices.phase(choice))).collect();
        let mut varying: Vec<usize> = program.phases.variants.iter().map(|variant| variant.node).collect();
        varying.dedup();
        for node in varying {
            let Some((weight, ..)) = product(&program.nodes[node].op) else { continue };
            if units.iter().any(|unit| unit.weights == [weight]) {
                continue;
            }
            let info = &packed.tensors()[weight.0 as usize];
            let name = info.name.strip_suffix(".weight").unwrap_or(&info.name);
            let copies = copies(packed, &info.name);
            let module = name.split_once('/').map_or(name, |(_, module)| module);
            let unit = Unit {
                name: name.to_owned(),
                layers: vec![module.to_owned()],
                weights: info.dims.iter().map(|&n| n as u64).product(),
                full_bytes: copies * raw_bytes(info.dims.iter().map(|&n| n as u64).product(), PRECISION),
                choices: phases.iter().map(|program| probe(packed, program, node, copies)).collect(),
            };
            units.push(Layers { weights: vec![weight], unit });
        }
    }
    units
}

/// How often the checkpoint has a layer, by the name of its weight; 0 where average bits do not count it.
fn copies<D: AsRef<[u8]>>(packed: &Packed<D>, name: &str) -> u64 {
    if is_counted(name) { 1 + packed.meta().aliases.get(name).map_or(0, Vec::len) as u64 } else { 0 }
}

/// What the layer at `node` is in `program`, a program of one phase, before it is measured.
fn probe<D: AsRef<[u8]>>(packed: &Packed<D>, program: &Program, node: usize, copies: u64) -> Probe {
    let (weight, _, x) = product(&program.nodes[node].op).expect("a layer is one in all phases");
    let info = &packed.tensors()[weight.0 as usize];
    let codes = program.node_of(x).and_then(|maker| program.nodes[maker].op.quantizes());
    let layers = &packed.meta().quantization.layers;
    let layer = layers.iter().find(|layer| info.name.strip_suffix(".weight") == Some(&layer.name));
    let method = layer.map_or_else(|| info.kind.name(), |layer| layer.method.clone());
    let spec = spelled(&method, codes.map(|spec| spec.bits));
    let (rows, weights) = (info.dims[0] as u64, info.dims.iter().map(|&n| n as u64).product::<u64>());
    let own = |(method, bits): (&str, &str)| Method::parse(method).zip(bits.parse().ok().and_then(Bits::new));
    let counted_bytes = match method.rsplit_once('-').and_then(own) {
        Some((method, bits)) => quantized_bytes(rows, weights / rows.max(1), method, bits, PRECISION),
        None => raw_bytes(weights, PRECISION),
    };
    Probe {
        bytes: info.bytes as u64,
        counted_bytes: copies * counted_bytes,
        weight_error: layer.map(|layer| layer.error),
        spec: Some(spec),
        calls: Vec::new(),
    }
}

/// The SPEC of a layer that is stored as `method` says, `f16` or `kmeans-4`, and takes codes of so many bits, or floats.
pub(super) fn spelled(method: &str, activation_bits: Option<u8>) -> String {
    match method.rsplit_once('-') {
        Some((method, bits)) => format!("w{bits}a{}:{method}", activation_bits.unwrap_or(16)),
        None => method.to_owned(),
    }
}

/// The units that each of `globs` matches, together.
///
/// # Errors
/// If one is no glob, or matches nothing.
pub(super) fn groups(units: &[Layers], globs: &[String]) -> Result<Vec<Layers>> {
    globs.iter().map(|glob| group(units, glob)).collect()
}

/// What matches `glob`, the value of an option.
///
/// # Errors
/// If it is none.
pub(super) fn matcher(option: &str, glob: &str) -> Result<GlobMatcher> {
    let refuse = |e: globset::Error| Error::request(option, "a glob of layers' paths", format!("{glob}: {}", e.kind()));
    Ok(Glob::new(glob).map_err(refuse)?.compile_matcher())
}

fn group(units: &[Layers], glob: &str) -> Result<Layers> {
    let matcher = matcher("group", glob)?;
    let members: Vec<&Layers> = units.iter().filter(|unit| matcher.is_match(&unit.unit.layers[0])).collect();
    let Some(first) = members.first() else {
        let expected = format!("a glob of layers' paths such as {}", units.first().map_or("*", |u| &u.unit.layers[0]));
        return Err(Error::request("group", expected, format!("{glob}, which matches none")).into());
    };
    let choices = (0..first.unit.choices.len()).map(|choice| {
        let of = || members.iter().map(move |member| &member.unit.choices[choice]);
        let own = &first.unit.choices[choice];
        Probe {
            bytes: of().map(|probe| probe.bytes).sum(),
            counted_bytes: of().map(|probe| probe.counted_bytes).sum(),
            weight_error: None,
            spec: own.spec.clone().filter(|spec| of().all(|probe| probe.spec.as_ref() == Some(spec))),
            calls: Vec::new(),
        }
    });
    let unit = Unit {
        name: glob.to_owned(),
        layers: members.iter().map(|member| member.unit.layers[0].clone()).collect(),
        weights: members.iter().map(|member| member.unit.weights).sum(),
        full_bytes: members.iter().map(|member| member.unit.full_bytes).sum(),
        choices: choices.collect(),
    };
    Ok(Layers { weights: members.iter().map(|member| member.weights[0]).collect(), unit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(module: &str, weight: u32, bytes: [u64; 2], activation_bits: Option<u8>) -> Layers {
        let probe = |bytes| {
            let spec = Some(spelled("mse-4", activation_bits));
            Probe { bytes, counted_bytes: 2 * bytes, weight_error: Some(0.1), spec, calls: Vec::new() }
        };
        let layers = vec![module.to_owned()];
        let unit = Unit {
            name: format!("net/{module}"),
            layers,
            weights: 10,
            full_bytes: 20,
            choices: bytes.map(probe).into(),
        };
        Layers { weights: vec![Tensor(weight)], unit }
    }

    #[test]
    fn groups_are_what_their_globs_match() {
        let units =
            [unit("a.ff", 3, [4, 8], Some(8)), unit("a.to_q", 5, [1, 2], Some(8)), unit("b.ff", 7, [16, 32], None)];
        let found = groups(&units, &["*.ff".into(), "a.*".into()]).unwrap();
        assert_eq!(found[0].weights, [Tensor(3), Tensor(7)]);
        assert_eq!((found[0].unit.weights, &found[0].unit.layers), (20, &vec!["a.ff".to_owned(), "b.ff".to_owned()]));
        let facts = |group: &Layers| group.unit.choices.iter().map(|p| (p.bytes, p.spec.clone())).collect::<Vec<_>>();
        let same = Some("w4a8:mse".to_owned());
        assert_eq!(
            (facts(&found[0]), facts(&found[1])),
            (vec![(20, None), (40, None)], vec![(5, same.clone()), (10, same)])
        );
        let told = |glob: &str| groups(&units, &[glob.into()]).err().unwrap().to_string();
        assert_eq!(told("c.*"), "group: expected a glob of layers' paths such as a.ff, got c.*, which matches none");
        assert!(told("[").starts_with("group: expected a glob of layers' paths, got [: "));
    }
}
