//! The shapes on which `conv2d` and its two gradients are tried, the same for all three, each with every variant.

use crate::case::{Case, Input, normal};
use crate::ops::conv2d::Conv2d;
use crate::ops::convolution::{Geometry, Tile, Variant};
use crate::ops::cooperative::Jobs;
use crate::ops::winograd;
use crate::{DType, Shape};

/// A convolution and the shapes of its operands.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    what: &'static str,
    /// The op.
    pub conv: Conv2d,
    x: [usize; 4],
    weight: [usize; 4],
    /// Standard deviations of x, the weight and dy.
    scale: [f32; 3],
    /// Whether it is for the speed of GPUs alone.
    large: bool,
}

impl Setting {
    fn new(
        what: &'static str,
        x: [usize; 4],
        [kernel_height, kernel_width, out]: [usize; 3],
        conv: Conv2d,
    ) -> Self {
        let weight = [kernel_height, kernel_width, x[3] / conv.groups, out];
        Self { what, conv, x, weight, scale: [1.0; 3], large: false }
    }

    fn scaled(self, scale: [f32; 3]) -> Self {
        Self { scale, ..self }
    }

    fn with(&self, variant: Variant) -> Self {
        Self { conv: Conv2d { variant, ..self.conv }, ..self.clone() }
    }

    pub fn label(&self) -> String {
        match self.conv.variant {
            Variant::Auto => self.what.to_owned(),
            variant => format!("{}, {variant:?}", self.what),
        }
    }

    pub fn x(&self) -> Input {
        normal(self.x, self.scale[0], 1)
    }

    pub fn weight(&self) -> Input {
        normal(self.weight, self.scale[1], 2)
    }

    pub fn dy(&self) -> Input {
        let geometry = Geometry::of(&self.conv, &Shape::from(self.x), &Shape::from(self.weight));
        normal(geometry.out_shape(), self.scale[2], 3)
    }

    /// Height and width of x.
    pub fn input(&self) -> [usize; 2] {
        [self.x[1], self.x[2]]
    }

    /// Height and width of the kernel.
    pub fn kernel(&self) -> [usize; 2] {
        [self.weight[0], self.weight[1]]
    }

    /// Whether operands and results are such as 16-bit floats hold without overflow.
    fn fits_half(&self) -> bool {
        self.scale.iter().all(|scale| (1e-2..=1e2).contains(scale))
    }

    /// Whether the convolution can be done by [`Variant::Winograd`].
    fn suits_winograd(&self) -> bool {
        let geometry = Geometry::of(&self.conv, &Shape::from(self.x), &Shape::from(self.weight));
        winograd::suits(&geometry, DType::F32)
    }

    /// Whether finite differences are affordable: each element of the operands costs two runs of the reference.
    pub fn differentiable(&self) -> bool {
        let elements = |dims: [usize; 4]| dims.iter().product::<usize>();
        self.conv.variant == Variant::Auto && elements(self.x) < 300 && elements(self.weight) < 300
    }
}

/// The cases of an op, each made from its setting by `make`.
pub(super) fn cases(make: impl Fn(&Setting) -> Case) -> Vec<Case> {
    let every = settings().into_iter().flat_map(|setting| {
        let variants = [
            Variant::Auto,
            Variant::Tiled(None),
            Variant::Subgroup,
            Variant::Cooperative(None),
            Variant::Direct,
            Variant::Depthwise,
            Variant::Winograd,
        ];
        let suits = |variant: &Variant| match variant {
            Variant::Depthwise => setting.conv.groups > 1,
            Variant::Winograd => setting.suits_winograd(),

            _ => true,
        };
        let variants = variants.into_iter().filter(suits).collect::<Vec<_>>();
        variants.into_iter().map(|variant| make(&setting.with(variant))).collect::<Vec<_>>()
    });
    let tiles = several_tiles()
        .into_iter()
        .flat_map(|setting| Tile::ALL.map(|tile| make(&setting.with(Variant::Tiled(Some(tile))))));
    let halves = settings().into_iter().filter(|setting| setting.fits_half()).flat_map(|setting| {
        let mut variants = vec![Variant::Cooperative(None), Variant::Direct];
        if setting.conv.groups > 1 {
            variants.push(Variant::Auto);
        } else {
            variants.extend([Variant::Tiled(None), Variant::Subgroup]);
        }
        variants.into_iter().map(|variant| make(&setting.with(variant)).half(&[0, 1])).collect::<Vec<_>>()
    });
    let jobs = several_tiles().into_iter().flat_map(|setting| {
        Jobs::ALL.map(|jobs| {
            let setting = setting.with(Variant::Cooperative(Some(jobs)));
            [make(&setting), make(&setting).half(&[0, 1])]
        })
    });
    let speed = |setting: &Setting, case: Case| if setting.large { case.perf_large() } else { case.perf() };
    let perf = perf_settings().into_iter().map(|setting| speed(&setting, make(&setting)));
    let winograd = perf_settings()
        .into_iter()
        .filter(|setting| setting.suits_winograd())
        .map(|setting| speed(&setting, make(&setting.with(Variant::Winograd))));
    let halves_perf =
        perf_settings().into_iter().map(|setting| speed(&setting, make(&setting).half(&[0, 1])));
    every
        .chain(tiles)
        .chain(jobs.flatten())
        .chain(halves)
        .chain(perf)
        .chain(winograd)
        .chain(halves_perf)
        .collect()
}

fn same(padding: usize) -> Conv2d {
    Conv2d { padding: [padding; 4], ..Conv2d::default() }
}

fn settings() -> Vec<Setting> {
    let strided = |stride: [usize; 2], padding: [usize; 4]| Conv2d { stride, padding, ..Conv2d::default() };
    let grouped = |groups: usize, conv: Conv2d| Conv2d { groups, ..conv };
    let mut settings = vec![
        Setting::new("one element", [1, 1, 1, 1], [1, 1, 1], same(0)),
        Setting::new("1x1", [2, 5, 7, 4], [1, 1, 8], same(0)),
        Setting::new("3x3", [2, 7, 9, 12], [3, 3, 20], same(1)),
        Setting::new("three channels", [2, 9, 8, 3], [3, 3, 16], same(1)),
        Setting::new("odd channels", [2, 6, 5, 5], [3, 3, 7], same(1)),
        Setting::new("few channels", [1, 4, 5, 3], [3, 2, 5], strided([1, 1], [1, 1, 0, 1])),
        Setting::new("strips", [2, 6, 14, 8], [3, 3, 8], same(1)),
        Setting::new("strips, stride and padding", [2, 9, 8, 8], [2, 3, 4], strided([2, 1], [0, 1, 2, 1])),
        Setting::new(
            "strips, two groups",
            [3, 5, 7, 16],
            [3, 3, 8],
            grouped(2, strided([1, 1], [2, 1, 1, 2])),
        ),
        Setting::new("strips, many outputs", [1, 6, 9, 4], [3, 3, 20], same(1)),
        Setting::new("2x2 stride 2", [2, 8, 6, 8], [2, 2, 8], strided([2, 2], [0; 4])),
        Setting::new(
            "stride 2, asymmetric padding",
            [1, 9, 10, 8],
            [3, 3, 12],
            strided([2, 2], [1, 0, 2, 1]),
        ),
        Setting::new("odd everything", [1, 9, 7, 2], [5, 3, 3], strided([3, 2], [2, 1, 0, 2])),
        Setting::new("1x1 stride 2", [1, 5, 6, 4], [1, 1, 4], strided([2, 2], [0; 4])),
        Setting::new("stride larger than kernel and image", [2, 3, 2, 4], [2, 1, 4], strided([4, 5], [0; 4])),
        Setting::new("padding larger than kernel", [1, 3, 4, 4], [2, 2, 4], strided([1, 2], [3, 4, 5, 2])),
        Setting::new("rows and columns unused", [1, 8, 9, 4], [2, 3, 4], strided([3, 4], [0; 4])),
        Setting::new("fully connected", [5, 3, 4, 8], [3, 4, 24], same(0)),
        Setting::new("two groups", [1, 6, 5, 16], [3, 3, 24], grouped(2, same(1))),
        Setting::new("three odd groups", [1, 5, 5, 6], [3, 2, 9], grouped(3, strided([2, 1], [1, 0, 1, 0]))),
        Setting::new("depthwise", [2, 7, 6, 5], [3, 3, 5], grouped(5, strided([2, 2], [1; 4]))),
        Setting::new("depthwise, two outputs a channel", [1, 5, 4, 4], [3, 3, 8], grouped(4, same(1))),
        Setting::new("depthwise in vectors", [2, 5, 11, 12], [3, 3, 12], grouped(12, same(1))),
        Setting::new(
            "depthwise in vectors, stride 2",
            [3, 9, 12, 36],
            [3, 3, 36],
            grouped(36, strided([2, 2], [1, 0, 0, 1])),
        ),
        Setting::new("depthwise in vectors, whole image", [3, 7, 7, 8], [7, 7, 8], grouped(8, same(0))),
        Setting::new(
            "depthwise in vectors, wide stride",
            [1, 6, 19, 4],
            [2, 5, 4],
            grouped(4, strided([1, 4], [1, 2, 3, 1])),
        ),
        Setting::new(
            "depthwise in vectors, taps skipped",
            [2, 5, 6, 4],
            [1, 2, 4],
            grouped(4, strided([3, 3], [0; 4])),
        ),
        Setting::new("depthwise, a wide window", [1, 3, 12, 4], [2, 9, 4], grouped(4, same(3))),
        Setting::new("many channels", [2, 7, 10, 16], [3, 3, 20], same(1)),
        Setting::new("many channels, no padding", [3, 6, 5, 20], [3, 3, 16], same(0)),
        Setting::new("many channels, odd padding", [1, 4, 3, 18], [3, 3, 17], strided([1, 1], [2, 0, 1, 3])),
        Setting::new("tiny values", [1, 5, 5, 8], [3, 3, 8], same(1)).scaled([1e-12; 3]),
        Setting::new("huge values", [1, 5, 5, 8], [3, 3, 8], same(1)).scaled([1e15, 1e16, 1e17]),
    ];
    settings.extend(several_tiles());
    settings
}

/// Shapes that need several tiles, of any size and in either direction, and several splits of the pixels.
fn several_tiles() -> Vec<Setting> {
    vec![
        Setting::new("several tiles", [3, 13, 11, 20], [2, 2, 72], same(1)),
        Setting::new("many pixels", [4, 17, 18, 4], [3, 2, 8], same(1)),
        Setting::new("many strips", [9, 17, 14, 4], [3, 3, 8], same(1)),
    ]
}

fn perf_settings() -> Vec<Setting> {
    let stride_two = Conv2d { stride: [2, 2], ..Conv2d::default() };
    let large = |setting: Setting| Setting { large: true, ..setting };
    vec![
        // Of the small networks that are trained on a CPU adapter.
        Setting::new("perf 32x32 3->16", [32, 32, 32, 3], [3, 3, 16], same(1)),
        Setting::new("perf 28x28 8->8", [64, 28, 28, 8], [3, 3, 8], same(1)),
        Setting::new("perf 28x28 16->16", [64, 28, 28, 16], [3, 3, 16], same(1)),
        Setting::new("perf 28x28 64->64", [32, 28, 28, 64], [3, 3, 64], same(1)),
        Setting::new("perf 56x56 32->64 2x2 stride 2", [32, 56, 56, 32], [2, 2, 64], stride_two),
        Setting::new("perf 4x4 64->128 fully connected", [64, 4, 4, 64], [4, 4, 128], same(0)),
        // Of IR-50, where each stage has most of its time.
        Setting::new("perf 112x112 3->64", [32, 112, 112, 3], [3, 3, 64], same(1)),
        Setting::new("perf 112x112 64->64 2x2 stride 2", [32, 112, 112, 64], [2, 2, 64], stride_two),
        Setting::new("perf 56x56 64->64", [32, 56, 56, 64], [3, 3, 64], same(1)),
        Setting::new("perf 28x28 128->128", [32, 28, 28, 128], [3, 3, 128], same(1)),
        Setting::new("perf 14x14 256->256", [32, 14, 14, 256], [3, 3, 256], same(1)),
        Setting::new("perf 7x7 512->512", [32, 7, 7, 512], [3, 3, 512], same(1)),
        // And where a stage begins.
        large(Setting::new("perf 112x112 64->64", [32, 112, 112, 64], [3, 3, 64], same(1))),
        large(Setting::new("perf 56x56 64->128", [32, 56, 56, 64], [3, 3, 128], same(1))),
        large(Setting::new("perf 28x28 128->256", [32, 28, 28, 128], [3, 3, 256], same(1))),
        large(Setting::new("perf 14x14 256->512", [32, 14, 14, 256], [3, 3, 512], same(1))),
        large(Setting::new("perf 56x56 128->128 2x2 stride 2", [32, 56, 56, 128], [2, 2, 128], stride_two)),
        large(Setting::new("perf 28x28 256->256 2x2 stride 2", [32, 28, 28, 256], [2, 2, 256], stride_two)),
        large(Setting::new("perf 14x14 512->512 2x2 stride 2", [32, 14, 14, 512], [2, 2, 512], stride_two)),
        // Of mobilefacenet.
        Setting::new(
            "perf 28x28 depthwise 64",
            [32, 28, 28, 64],
            [3, 3, 64],
            Conv2d { groups: 64, ..same(1) },
        ),
        Setting::new(
            "perf 56x56 depthwise 128 stride 2",
            [16, 56, 56, 128],
            [3, 3, 128],
            Conv2d { groups: 128, padding: [1; 4], ..stride_two },
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::caps::{Caps, MatrixSides, SubgroupSizes};
    use crate::case::OpEntry;
    use crate::op::{Lowered, Lowering, Op};
    use crate::ops::conv2d::{self, Conv2d};
    use crate::ops::convolution::Variant;
    use crate::ops::{conv2d_grad_input, conv2d_grad_weight};
    use crate::{DType, Shape, TensorDesc};

    const CPU: Caps =
        Caps { cpu: true, f16: true, subgroups: Some(SubgroupSizes { min: 8, max: 8 }), ..Caps::WEBGPU };

    const MATRICES: Caps = Caps {
        f16: true,
        subgroups: Some(SubgroupSizes { min: 32, max: 64 }),
        matrices: MatrixSides { f32: Some(8), f16: Some(16) },
        max_invocations: 1024,
        max_workgroup_bytes: 32_768,
        ..Caps::WEBGPU
    };

    fn lower(op: &dyn Op, caps: &Caps, inputs: &[TensorDesc]) -> Lowered {
        let outputs = op.infer(inputs).unwrap();
        Lowering::run(op, caps, inputs, &outputs).unwrap()
    }

    fn kernels(lowered: &Lowered) -> Vec<&'static str> {
        lowered.dispatches.iter().map(|dispatch| dispatch.kernel.shader).collect()
    }

    fn desc<const N: usize>(dims: [usize; N]) -> TensorDesc {
        TensorDesc::f32(Shape::from(dims))
    }

    #[test]
    fn the_cases_reach_every_kernel_where_subgroups_have_one_size() {
        let entries: [OpEntry; 3] = [conv2d::ENTRY, conv2d_grad_input::ENTRY, conv2d_grad_weight::ENTRY];
        for entry in entries {
            let mut reached = BTreeSet::new();
            for case in (entry.cases)().iter().filter(|case| !case.perf) {
                let inputs: Vec<_> = case.inputs.iter().map(|input| input.desc().clone()).collect();
                let all = [CPU, Caps { cpu: false, ..CPU }, Caps::WEBGPU, MATRICES];
                for caps in all.into_iter().filter(|caps| case.runs_on(caps)) {
                    reached.extend(kernels(&lower(&*case.op, &caps, &inputs)));
                }
            }
            let declared: BTreeSet<_> = entry.kernels.iter().map(|kernel| kernel.shader).collect();
            assert_eq!(reached, declared, "{}", entry.name);
        }
    }

    #[test]
    fn the_adapter_decides_on_the_kernel() {
        let inputs = [desc([2, 14, 14, 32]), desc([3, 3, 32, 64])];
        let op = Conv2d { padding: [1; 4], ..Conv2d::default() };
        assert_eq!(kernels(&lower(&op, &CPU, &inputs)), ["conv2d_subgroup"]);
        assert_eq!(kernels(&lower(&op, &Caps { cpu: false, ..CPU }, &inputs)), ["conv2d"]);
        // Where the size of a subgroup varies or is too small, the subgroup kernel would be wrong.
        for (min, max) in [(4, 4), (8, 16), (8, 32)] {
            let caps = Caps { subgroups: Some(SubgroupSizes { min, max }), ..CPU };
            assert_eq!(kernels(&lower(&op, &caps, &inputs)), ["conv2d"], "{min}..{max}");
        }
        let depthwise = Conv2d { groups: 32, ..op };
        let inputs = [desc([2, 14, 14, 32]), desc([3, 3, 1, 32])];
        assert_eq!(kernels(&lower(&depthwise, &CPU, &inputs)), ["conv2d_depthwise"]);
    }

    #[test]
    fn cooperative_matrices_are_the_rule_for_16_bit_elements_where_they_fit() {
        let half = |desc: TensorDesc| TensorDesc { dtype: DType::F16, ..desc };
        let inputs = [desc([2, 14, 14, 32]), desc([3, 3, 32, 64])];
        let halves = inputs.clone().map(half);
        let op = Conv2d { padding: [1; 4], ..Conv2d::default() };
        let launches = |op: &Conv2d, caps: &Caps, inputs: &[TensorDesc]| {
            lower(op, caps, inputs)
                .dispatches
                .iter()
                .map(|d| d.kernel.module_name(d.half))
                .collect::<Vec<_>>()
        };
        assert_eq!(launches(&op, &MATRICES, &halves), ["conv2d_cooperative.f16.16x16"]);
        assert_eq!(launches(&op, &MATRICES, &inputs), ["conv2d"]);
        let wanted = Conv2d { variant: Variant::Cooperative(None), ..op };
        assert_eq!(launches(&wanted, &MATRICES, &inputs), ["conv2d_cooperative"]);
        let small = Caps { matrices: MatrixSides { f32: None, f16: Some(8) }, ..MATRICES };
        assert_eq!(launches(&op, &small, &halves), ["conv2d_cooperative.f16"]);
        // No more than a subgroup a job fits a workgroup, and no job fits where neither subgroups nor memory do.
        let jobs = |caps: &Caps| {
            let large = [half(desc([64, 56, 56, 64])), half(desc([3, 3, 64, 256]))];
            let lowered = lower(&op, caps, &large);
            let value = |name| {
                let constants = &lowered.dispatches[0].constants;
                constants.iter().find(|(known, _)| *known == name).map(|(_, value)| *value as u32)
            };
            [value("JOBS_Y"), value("JOBS_X"), value("WORKGROUP")]
        };
        assert_eq!(jobs(&MATRICES), [Some(2), Some(4), Some(512)]);
        assert_eq!(jobs(&Caps { max_invocations: 256, ..MATRICES }), [Some(2), Some(2), Some(256)]);
        assert_eq!(jobs(&Caps { max_workgroup_bytes: 16_384, ..MATRICES }), [Some(1), Some(2), Some(128)]);
        for caps in [
            Caps { max_workgroup_bytes: 4096, ..MATRICES },
            Caps { max_invocations: 32, ..MATRICES },
            Caps { subgroups: Some(SubgroupSizes { min: 4, max: 4 }), ..MATRICES },
            Caps { subgroups: None, ..MATRICES },
        ] {
            assert_eq!(launches(&op, &caps, &halves), ["conv2d.f16"]);
        }
        // Few channels would leave most of a job empty.
        assert_eq!(
            launches(&op, &MATRICES, &[half(desc([2, 9, 9, 8])), half(desc([3, 3, 8, 64]))]),
            ["conv2d.f16"]
        );
    }

    #[test]
    fn the_input_gradient_of_a_stride_wastes_no_products() {
        let conv = Conv2d { stride: [2, 2], ..Conv2d::default() };
        let op = conv2d_grad_input::Conv2dGradInput { conv, input: [8, 8] };
        let lowered = lower(&op, &Caps::WEBGPU, &[desc([3, 3, 4, 4]), desc([1, 3, 3, 4])]);
        // The weights, and four phases.
        assert_eq!(kernels(&lowered), ["conv2d_grad_input_weight", "conv2d", "conv2d", "conv2d", "conv2d"]);
    }

    #[test]
    fn operands_that_do_not_fit_are_explained() {
        let message =
            |op: &Conv2d, x: TensorDesc, weight: TensorDesc| op.infer(&[x, weight]).unwrap_err().to_string();
        let plain = Conv2d::default();
        let x = desc([1, 5, 5, 6]);
        assert!(message(&plain, x.clone(), desc([3, 3, 4, 8])).contains("expected weight [KH, KW, 6, Cout]"));
        assert!(
            message(&plain, x.clone(), desc([7, 3, 6, 8]))
                .contains("a kernel of at most 5x5, or more padding")
        );
        assert!(message(&plain, x.clone(), desc([3, 6, 8])).contains("x [N, H, W, Cin]"));
        let grouped = Conv2d { groups: 3, ..plain };
        assert!(message(&grouped, x.clone(), desc([3, 3, 2, 8])).contains("multiples of the 3 groups"));
        assert!(
            message(&Conv2d { groups: 0, ..plain }, x.clone(), desc([3, 3, 6, 8])).contains("at least 1")
        );
        assert!(message(&Conv2d { stride: [0, 1], ..plain }, x, desc([3, 3, 6, 8])).contains("at least 1"));
    }
}
