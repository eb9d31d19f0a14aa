//! Whole-warp arithmetic: a kernel computes one instruction for 32 lanes, active or not.

/// A register of at most 32 bits, for each lane; narrower values are zero-extended.
pub(crate) type W = [u32; 32];
/// A 64-bit register, for each lane.
pub(crate) type D = [u64; 32];

/// A function over whole-warp values, by the widths of its operands (`W`: up to 32 bits, `D`: 64 bits).
#[derive(Clone, Copy)]
pub(crate) enum Kernel {
    WtoW(fn(&mut W, &W)),
    DtoD(fn(&mut D, &D)),
    WtoD(fn(&mut D, &W)),
    DtoW(fn(&mut W, &D)),
    WWtoW(fn(&mut W, &W, &W)),
    DDtoD(fn(&mut D, &D, &D)),
    WWtoD(fn(&mut D, &W, &W)),
    DWtoD(fn(&mut D, &D, &W)),
    WWWtoW(fn(&mut W, &W, &W, &W)),
    DDDtoD(fn(&mut D, &D, &D, &D)),
    WWDtoD(fn(&mut D, &W, &W, &D)),
    DDWtoD(fn(&mut D, &D, &D, &W)),
    DWWtoD(fn(&mut D, &D, &W, &W)),
    WWWWtoW(fn(&mut W, &W, &W, &W, &W)),
    DDWWtoD(fn(&mut D, &D, &D, &W, &W)),
}

/// A comparison over whole-warp values; the result has one bit per lane.
#[derive(Clone, Copy)]
pub(crate) enum Test {
    W(fn(&W, &W) -> u32),
    D(fn(&D, &D) -> u32),
}

/// Builds a [`Kernel`] from an expression over integer operands:
/// `kern!(WWtoW(a: u32 as i16, b: u32 as i16) -> u16 as u32 { a.wrapping_add(b) })`.
macro_rules! kern {
    ($variant:ident($($x:ident: $elem:ty as $t:ty),*) -> $rc:ty as $out:ty { $e:expr }) => {{
        #[allow(clippy::unnecessary_cast, clippy::too_many_arguments)]
        fn run(out: &mut [$out; 32], $($x: &[$elem; 32]),*) {
            for (lane, out) in out.iter_mut().enumerate() {
                $(let $x = $x[lane] as $t;)*
                *out = ($e) as $rc as $out;
            }
        }
        $crate::kernels::Kernel::$variant(run)
    }};
}

/// A unary integer kernel for any of the integer types.
macro_rules! unary_int {
    ($ty:expr, |$a:ident| $e:expr) => {
        match $ty {
            Ty::U16 | Ty::B16 => Some(kern!(WtoW($a: u32 as u16) -> u16 as u32 { $e })),
            Ty::S16 => Some(kern!(WtoW($a: u32 as i16) -> u16 as u32 { $e })),
            Ty::U32 | Ty::B32 => Some(kern!(WtoW($a: u32 as u32) -> u32 as u32 { $e })),
            Ty::S32 => Some(kern!(WtoW($a: u32 as i32) -> u32 as u32 { $e })),
            Ty::U64 | Ty::B64 => Some(kern!(DtoD($a: u64 as u64) -> u64 as u64 { $e })),
            Ty::S64 => Some(kern!(DtoD($a: u64 as i64) -> u64 as u64 { $e })),
            _ => None,
        }
    };
}

/// A binary integer kernel for any of the integer types.
macro_rules! binary_int {
    ($ty:expr, |$a:ident, $b:ident| $e:expr) => {
        match $ty {
            Ty::U16 | Ty::B16 => Some(kern!(WWtoW($a: u32 as u16, $b: u32 as u16) -> u16 as u32 { $e })),
            Ty::S16 => Some(kern!(WWtoW($a: u32 as i16, $b: u32 as i16) -> u16 as u32 { $e })),
            Ty::U32 | Ty::B32 => Some(kern!(WWtoW($a: u32 as u32, $b: u32 as u32) -> u32 as u32 { $e })),
            Ty::S32 => Some(kern!(WWtoW($a: u32 as i32, $b: u32 as i32) -> u32 as u32 { $e })),
            Ty::U64 | Ty::B64 => Some(kern!(DDtoD($a: u64 as u64, $b: u64 as u64) -> u64 as u64 { $e })),
            Ty::S64 => Some(kern!(DDtoD($a: u64 as i64, $b: u64 as i64) -> u64 as u64 { $e })),
            _ => None,
        }
    };
}

/// A ternary integer kernel for any of the integer types.
macro_rules! ternary_int {
    ($ty:expr, |$a:ident, $b:ident, $c:ident| $e:expr) => {
        match $ty {
            Ty::U16 | Ty::B16 => {
                Some(kern!(WWWtoW($a: u32 as u16, $b: u32 as u16, $c: u32 as u16) -> u16 as u32 { $e }))
            }
            Ty::S16 => Some(kern!(WWWtoW($a: u32 as i16, $b: u32 as i16, $c: u32 as i16) -> u16 as u32 { $e })),
            Ty::U32 | Ty::B32 => {
                Some(kern!(WWWtoW($a: u32 as u32, $b: u32 as u32, $c: u32 as u32) -> u32 as u32 { $e }))
            }
            Ty::S32 => Some(kern!(WWWtoW($a: u32 as i32, $b: u32 as i32, $c: u32 as i32) -> u32 as u32 { $e })),
            Ty::U64 | Ty::B64 => {
                Some(kern!(DDDtoD($a: u64 as u64, $b: u64 as u64, $c: u64 as u64) -> u64 as u64 { $e }))
            }
            Ty::S64 => Some(kern!(DDDtoD($a: u64 as i64, $b: u64 as i64, $c: u64 as i64) -> u64 as u64 { $e })),
            _ => None,
        }
    };
}

/// Kernels over f32 values; NaN results become the canonical NaN ("Floating Point Instructions").
macro_rules! float32 {
    ($variant:ident, |$($x:ident),*| $e:expr) => {{
        fn run(out: &mut W, $($x: &W),*) {
            for (lane, out) in out.iter_mut().enumerate() {
                $(let $x = f32::from_bits($x[lane]);)*
                *out = $crate::float::bits32($e);
            }
        }
        $crate::kernels::Kernel::$variant(run)
    }};
}

/// Kernels over f64 values.
macro_rules! float64 {
    ($variant:ident, |$($x:ident),*| $e:expr) => {{
        fn run(out: &mut D, $($x: &D),*) {
            for (lane, out) in out.iter_mut().enumerate() {
                $(let $x = f64::from_bits($x[lane]);)*
                *out = f64::to_bits($e);
            }
        }
        $crate::kernels::Kernel::$variant(run)
    }};
}

/// Kernels over f16 or packed f16x2 bits: the expression computes one half from halves as u16.
macro_rules! half {
    ($packed:expr, $variant:ident, |$($x:ident),*| $e:expr) => {{
        fn one(out: &mut W, $($x: &W),*) {
            for (lane, out) in out.iter_mut().enumerate() {
                $(let $x = $x[lane] as u16;)*
                *out = u32::from($e);
            }
        }
        fn two(out: &mut W, $($x: &W),*) {
            for (lane, out) in out.iter_mut().enumerate() {
                let low: u16 = { $(let $x = $x[lane] as u16;)* $e };
                let high: u16 = { $(let $x = ($x[lane] >> 16) as u16;)* $e };
                *out = u32::from(low) | u32::from(high) << 16;
            }
        }
        $crate::kernels::Kernel::$variant(if $packed { two } else { one })
    }};
}

/// A comparison of two operands converted by `$conv`.
macro_rules! test {
    ($variant:ident, $elem:ty, |$a:ident, $b:ident| $conv:expr, $e:expr) => {{
        fn run($a: &[$elem; 32], $b: &[$elem; 32]) -> u32 {
            let conv = $conv;
            let mut bits = 0;
            for lane in 0..32 {
                let ($a, $b) = (conv($a[lane]), conv($b[lane]));
                bits |= u32::from($e) << lane;
            }
            bits
        }
        $crate::kernels::Test::$variant(run)
    }};
}

pub(crate) use {binary_int, float32, float64, half, kern, ternary_int, test, unary_int};
