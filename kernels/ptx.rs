//! The text of PTX modules: what the build script does to the compiler's output before it is kept.

/// The lowest PTX ISA version in which each of these can be written, where that is later than [`BASELINE`]. An entry
/// counts where it stands as a word, or, if it starts with a dot, as a modifier. From the release notes of the PTX ISA, and
/// tried: the assembler takes an instruction at its version, and not at the one before. What the table misses it refuses.
const FEATURES: &[(&str, (u32, u32))] = &[
    ("cvt.f32.bf16", (7, 1)),
    ("alloca", (7, 3)),
    ("stacksave", (7, 3)),
    ("stackrestore", (7, 3)),
    (".L1::evict_normal", (7, 4)),
    (".L1::evict_unchanged", (7, 4)),
    (".L1::evict_first", (7, 4)),
    (".L1::evict_last", (7, 4)),
    (".L1::no_allocate", (7, 4)),
    (".L2::evict_normal", (7, 4)),
    (".L2::evict_first", (7, 4)),
    (".L2::evict_last", (7, 4)),
    (".L2::cache_hint", (7, 4)),
    (".L2::64B", (7, 4)),
    (".L2::128B", (7, 4)),
    (".L2::256B", (7, 4)),
    ("createpolicy", (7, 4)),
    ("discard", (7, 4)),
    ("applypriority", (7, 4)),
    ("bmsk", (7, 6)),
    ("szext", (7, 6)),
    ("%reserved_smem_offset_begin", (7, 6)),
    ("cvta.param", (7, 7)),
    ("isspacep.param", (7, 7)),
    ("movmatrix", (7, 8)),
    ("stmatrix", (7, 8)),
    ("barrier.cta", (7, 8)),
    ("barrier.cluster", (7, 8)),
    ("griddepcontrol", (7, 8)),
    ("mapa", (7, 8)),
    ("mbarrier.try_wait", (7, 8)),
    (".e4m3x2", (7, 8)),
    (".e5m2x2", (7, 8)),
    ("cp.async.bulk", (8, 0)),
    ("elect.sync", (8, 0)),
    ("fence.proxy", (8, 0)),
    ("setmaxnreg", (8, 0)),
    ("wgmma", (8, 0)),
    (".param::entry", (8, 3)),
    (".param::func", (8, 3)),
    (".b128", (8, 3)),
];

/// The version that introduced `sm_80` with its `mma`, `cp.async` and `redux.sync`.
const BASELINE: (u32, u32) = (7, 0);

/// The lowest PTX ISA version that `ptx` can claim.
pub fn version(ptx: &str) -> (u32, u32) {
    let code: String = ptx.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
    let features = FEATURES.iter().filter(|(feature, _)| mentions(&code, feature)).map(|f| f.1);
    // Bytes of which one factor has a sign came to `wgmma` later than to `mma`.
    let mixed = |line: &str| mentions(line, "wgmma") && (line.contains(".s8.u8") || line.contains(".u8.s8"));
    features.chain(code.lines().any(mixed).then_some((8, 4))).fold(BASELINE, Ord::max)
}

/// Whether `feature` stands in `code`, not merely as a part of a longer word.
fn mentions(code: &str, feature: &str) -> bool {
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
    code.match_indices(feature).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + feature.len()..].chars().next();
        let starts = feature.starts_with('.') || !before.is_some_and(|c| in_word(c) || c == '.' || c == '%');
        starts && !after.is_some_and(in_word)
    })
}

/// The module to keep of a compiler's output: without comments, at the lowest version that suffices. The hint
/// `used_bytes_mask` goes: no instruction means anything else without it, and it alone would need version 8.3.
pub fn tidy(ptx: &str) -> String {
    let (major, minor) = version(ptx);
    let mut kept = String::new();
    for line in ptx.lines().map(str::trim_end) {
        let text = line.trim_start();
        if text.is_empty() || text.starts_with("//") || text.starts_with(".pragma \"used_bytes_mask") {
            continue;
        }
        if line.starts_with(".version ") {
            kept += &format!(".version {major}.{minor}");
        } else {
            kept += line;
        }
        kept.push('\n');
    }
    kept
}

/// The modules that the source of `stem` asks for, each with its macro definitions. A comment in the leading lines,
/// `// variants: WEIGHT_BITS=2,4 STAGES=3,4`, asks for one module per combination: `stem.w2.s3`, ..., named by the first
/// letter of each macro.
pub fn variants(stem: &str, source: &str) -> Vec<(String, Vec<String>)> {
    let mut modules = vec![(stem.to_owned(), vec![])];
    let mut leading = source.lines().take_while(|line| line.starts_with("//"));
    let Some(axes) = leading.find_map(|line| line.strip_prefix("// variants:")) else { return modules };
    for axis in axes.split_whitespace() {
        let (name, values) = axis.split_once('=').unwrap_or_else(|| panic!("{stem}.cu: `{axis}` is no NAME=VALUES"));
        let letter = name[..1].to_lowercase();
        let mut widened = vec![];
        for (module, macros) in &modules {
            for value in values.split(',') {
                let mut macros: Vec<String> = macros.clone();
                macros.push(format!("-D{name}={value}"));
                widened.push((format!("{module}.{letter}{value}"), macros));
            }
        }
        modules = widened;
    }
    modules
}
