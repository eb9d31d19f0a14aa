//! `packer inspect` and `packer verify`.

use super::table::{Table, bytes, percent};
use super::{say, say_json, say_line};
use crate::account::{Account, accounts};
use crate::error::Result;
use aquatint::Model;
use aquatint::raw::format::meta::{CalibrationMeta, LayerMeta, Step};
use aquatint::raw::format::{Meta, Packed};
use aquatint::raw::program::Phases;
use aquatint::raw::whole_file::check_target;
use serde_json::json;
use std::path::Path;

pub(super) fn verify(file: &Path) -> Result<()> {
    let packed = Packed::open(file)?;
    Model::verify(&packed)?;
    say_line(format!("{}: sound, {}, {:032x}", file.display(), bytes(packed.as_bytes().len() as u64), packed.hash()));
    Ok(())
}

pub(super) fn inspect(file: &Path, as_json: bool, page: Option<&Path>) -> Result<()> {
    if let Some(page) = page {
        check_target(page, &[file])?;
    }
    let packed = Packed::open(file)?;
    if let Some(page) = page {
        super::page::write(&packed, page)?;
        say_line(page.display());
        return Ok(());
    }
    if as_json {
        return print_json(&packed);
    }
    print_model(&packed, file);
    print_accounts(&packed)?;
    say("");
    print_layers(packed.meta());
    say("");
    print_tensors(&packed);
    Ok(())
}

fn print_json<D: AsRef<[u8]>>(packed: &Packed<D>) -> Result<()> {
    let programs = packed.programs().iter().map(|program| {
        let nodes = program.nodes.iter().enumerate().map(|(i, node)| {
            let reads: Vec<_> = node.op.reads().map(|v| v.0).collect();
            let tensors: Vec<_> = node.op.tensors().map(|t| t.0).collect();
            json!({
                "value": program.value_of(i).0, "op": node.op.name(), "path": node.path, "reads": reads,
                "tensors": tensors, "wide": node.wide, "quantize_bits": node.op.quantizes().map(|q| q.bits),
            })
        });
        let inputs = program.inputs.iter().map(|i| format!("{:?}", i.kind));
        let Phases { axis, starts, variants } = &program.phases;
        let variants = variants.iter().map(|v| {
            let tensors: Vec<_> = v.op.tensors().map(|t| t.0).collect();
            let of: Vec<usize> = (0..starts.len()).filter(|phase| v.phases >> phase & 1 == 1).collect();
            let bits = v.op.quantizes().map(|q| q.bits);
            json!({"value": program.value_of(v.node).0, "phases": of, "tensors": tensors, "quantize_bits": bits})
        });
        let variants: Vec<_> = variants.collect();
        let phases = (!starts.is_empty()).then(|| json!({"axis": axis.name(), "from": starts, "variants": variants}));
        json!({
            "role": program.role.name(), "inputs": inputs.collect::<Vec<_>>(),
            "nodes": nodes.collect::<Vec<_>>(), "output": program.output.0, "phases": phases,
        })
    });
    let tensors = packed
        .tensors()
        .iter()
        .map(|t| json!({"name": t.name, "dims": t.dims, "kind": t.kind.name(), "offset": t.offset, "bytes": t.bytes}));
    say_json(&json!({
        "file_bytes": packed.as_bytes().len(),
        "hash": format!("{:032x}", packed.hash()),
        "meta": packed.meta(),
        "accounts": accounts(packed)?,
        "programs": programs.collect::<Vec<_>>(),
        "tensors": tensors.collect::<Vec<_>>(),
    }))
}

fn print_model<D: AsRef<[u8]>>(packed: &Packed<D>, file: &Path) {
    let meta = packed.meta();
    let file_bytes = packed.as_bytes().len() as u64;
    let pipeline = &meta.pipeline;
    say_line(format!("{}  {}, written by {}", file.display(), bytes(file_bytes), meta.tool));
    say_line(format!("hash      {:032x}", packed.hash()));
    let pixels = pipeline.latent_size.map(|n| u64::from(n) * u64::from(pipeline.pixels_per_latent));
    say_line(format!("model     {} ({}), {} x {} pixels", pipeline.name, pipeline.class, pixels[0], pixels[1]));
    for (i, line) in pipeline.sampler_lines().iter().enumerate() {
        say_line(format!("{}{line}", if i == 0 { "sampler   " } else { "          " }));
    }
    say_line(format!("quantized {}; average bits {:.2}", meta.quantization.config, meta.quantization.average_bits));
    if let Some(attention) = &meta.quantization.attention {
        say_line(format!("attention {attention}"));
    }
    if let Some(calibration) = &meta.quantization.calibration {
        say_line(format!("calibrated on {}", calibrated_on(calibration)));
    }
    for program in packed.programs() {
        say_line(format!("program   {}, {} nodes", program.role.name(), program.nodes.len()));
    }
    for source in &meta.sources {
        say_line(format!("source    {}  {}  {}", source.xxh3, source.file, bytes(source.bytes)));
    }
}

/// What papers publish of a model, a line per network.
fn print_accounts<D: AsRef<[u8]>>(packed: &Packed<D>) -> Result<()> {
    for Account { network, phase, share, sizes, layer_macs, attention_macs, bit_operations, .. } in accounts(packed)? {
        let giga = |n: u64| n as f64 / 1e9;
        let phase = match share {
            1.0 => String::new(),
            share => {
                format!(" in phase {phase}, {:.1} % of a run, of {:.2} bits", 100.0 * share, sizes[0].average_bits)
            }
        };
        say_line(format!(
            "one call  {network}{phase}: {:.3} G multiply-adds of layers, {:.3} G of attention; {:.3} T bit operations",
            giga(layer_macs),
            2.0 * giga(attention_macs),
            bit_operations / 1e12
        ));
    }
    Ok(())
}

fn print_layers(meta: &Meta) {
    let mut layers =
        Table::new(["layer", "method", "act", "error", "exact", "outputs", "nearest", "bytes", "decided by"]);
    for l in &meta.quantization.layers {
        let act = if l.activation_bits == 32 { "-".into() } else { l.activation_bits.to_string() };
        let share = |error: Option<f64>| error.map_or_else(|| "-".into(), percent);
        let [error, exact] = [percent(l.error), percent(l.exact_error)];
        let [output, nearest] = [share(l.output_error), share(l.nearest_output_error)];
        let (name, method) = (l.name.clone(), l.method.clone());
        layers.row([name, method, act, error, exact, output, nearest, l.bytes.to_string(), decided_by(l)]);
    }
    say(layers);
    for l in &meta.quantization.layers {
        if let Some(note) = &l.note {
            say_line(format!("{}: {note}", l.name));
        }
    }
}

fn print_tensors<D: AsRef<[u8]>>(packed: &Packed<D>) {
    let meta = packed.meta();
    let mut tensors = Table::new(["tensor", "shape", "storage", "bytes", "steps"]);
    for t in packed.tensors() {
        let steps = meta.steps.get(&t.name).map_or(&[][..], Vec::as_slice);
        let made = meta.made.contains(&t.name).then_some("made");
        let steps = made.into_iter().chain(steps.iter().map(Step::name)).collect::<Vec<_>>().join(", ");
        tensors.row([t.name.clone(), format!("{:?}", t.dims), t.kind.name(), t.bytes.to_string(), steps]);
    }
    say(tensors);
}

/// What the calibration was made of, in words.
pub(super) fn calibrated_on(meta: &CalibrationMeta) -> String {
    let CalibrationMeta { images, calls, of_calls, sampler, guidance_scale, seed, .. } = meta;
    let calls = calls.len();
    format!("{images} images at {calls} of {of_calls} calls, {sampler}, guidance {guidance_scale}, seed {seed}")
}

/// What decided about a layer, as tables show it.
pub(super) fn decided_by(layer: &LayerMeta) -> String {
    layer.decided_by.clone().unwrap_or_else(|| "-".into())
}
