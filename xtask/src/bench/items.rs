//! The work that is measured.

use serde_json::{Map, Value, json};

/// What the sizes depend on.
pub struct Sizes {
    /// Images, where that is said.
    pub batch: Option<usize>,
    /// Whether the adapter is a CPU.
    pub cpu: bool,
    /// The smaller half alone.
    pub quick: bool,
    /// Every distinct shape of the network's convolutions, not only one of each kind.
    pub all_shapes: bool,
}

/// A piece of work.
#[derive(Debug, Clone)]
pub struct Item {
    /// What people call it.
    pub name: String,
    /// matmul, conv, step or head.
    pub kind: &'static str,
    /// Floating-point operations, a multiply-add counted as two; 0 where they are not told.
    pub flops: f64,
    sizes: Value,
}

impl Item {
    /// What a side is sent.
    pub fn request(&self, mixed: bool, cpu: bool) -> Value {
        let mut request = match &self.sizes {
            Value::Object(sizes) => sizes.clone(),
            _ => Map::new(),
        };
        request.insert("kind".into(), self.kind.into());
        request.insert("precision".into(), if mixed { "mixed" } else { "f32" }.into());
        // On a CPU an item takes seconds as it is.
        request.insert("samples".into(), if cpu { 3 } else { 7 }.into());
        request.insert("seconds".into(), if cpu { 0.2 } else { 0.5 }.into());
        request.into()
    }
}

/// Shapes of the convolutions of IR-50 at 112 x 112, one of each kind: the first layer, the 3x3 layers that each stage is made
/// of, and a 2x2 layer with stride 2 of those that lead from one to the next. Height and width, channels in and out, window.
const CONVOLUTIONS: [(usize, usize, usize, usize); 6] = [
    (112, 3, 64, 3),
    (112, 64, 64, 2),
    (56, 64, 64, 3),
    (28, 128, 128, 3),
    (14, 256, 256, 3),
    (7, 512, 512, 3),
];

/// The others, each once or twice in the network: the 3x3 layer that begins a stage at the size of the stage before, and the 2x2
/// layers of its two branches.
const OTHER_CONVOLUTIONS: [(usize, usize, usize, usize); 10] = [
    (112, 64, 64, 3),
    (56, 64, 128, 3),
    (56, 64, 128, 2),
    (56, 128, 128, 2),
    (28, 128, 256, 3),
    (28, 128, 256, 2),
    (28, 256, 256, 2),
    (14, 256, 512, 3),
    (14, 256, 512, 2),
    (14, 512, 512, 2),
];

/// All items, or the smaller half.
pub fn items(sizes: &Sizes) -> Vec<Item> {
    let mut all = Vec::new();
    for (what, m, n, k) in [
        ("square", 512, 512, 512),
        ("square", 1024, 1024, 1024),
        ("last layer, batch 128", 128, 512, 25_088),
        ("cosines, batch 128", 128, 10_572, 512),
    ] {
        all.push(Item {
            name: format!("matmul {m} x {n} x {k} ({what})"),
            kind: "matmul",
            flops: 2.0 * (m * n) as f64 * k as f64,
            sizes: json!({"m": m, "n": n, "k": k}),
        });
    }
    let batch = sizes.batch.unwrap_or(if sizes.cpu { 4 } else { 128 });
    let others = OTHER_CONVOLUTIONS.into_iter().filter(|_| sizes.all_shapes);
    for (size, cin, cout, window) in CONVOLUTIONS.into_iter().chain(others) {
        let (stride, padding) = if window == 2 { (2, 0) } else { (1, 1) };
        let out = (size + 2 * padding - window) / stride + 1;
        for pass in ["forward", "dgrad", "wgrad"] {
            // Nothing needs the gradient of an image.
            if cin == 3 && pass == "dgrad" {
                continue;
            }
            all.push(Item {
                name: format!("conv {window}x{window}/{stride} {cin}->{cout} at {size}, {pass}"),
                kind: "conv",
                flops: 2.0 * (batch * out * out * window * window * cin) as f64 * cout as f64,
                sizes: json!({
                    "pass": pass, "batch": batch, "size": size, "cin": cin, "cout": cout, "window": window,
                    "stride": stride, "padding": padding,
                }),
            });
        }
    }
    for arch in ["ir18", "ir50"] {
        if arch == "ir50" && sizes.quick {
            continue;
        }
        let batch = sizes.batch.unwrap_or(if sizes.cpu { 4 } else { 128 });
        all.push(Item {
            name: format!("training step of {arch}, batch {batch}"),
            kind: "step",
            flops: 0.0,
            sizes: json!({"arch": arch, "batch": batch, "classes": 10_572}),
        });
    }
    for classes in [10_572, 85_742] {
        if classes > 20_000 && sizes.quick {
            continue;
        }
        let batch = 128;
        all.push(Item {
            name: format!("head of {classes} classes, batch {batch}"),
            kind: "head",
            // The cosines and both of their gradients.
            flops: 6.0 * (batch * classes) as f64 * 512.0,
            sizes: json!({"batch": batch, "classes": classes, "dim": 512}),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_items_apart_and_requests_are_whole() {
        let all = items(&Sizes { batch: None, cpu: true, quick: false, all_shapes: true });
        let mut names: Vec<&str> = all.iter().map(|item| item.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        assert_eq!(all.iter().filter(|item| item.kind == "conv").count(), 47);
        let usual = items(&Sizes { batch: None, cpu: true, quick: false, all_shapes: false });
        assert_eq!(usual.iter().filter(|item| item.kind == "conv").count(), 17);
        let request = all[4].request(true, true);
        assert_eq!(
            (&request["kind"], &request["pass"], &request["batch"]),
            (&json!("conv"), &json!("forward"), &json!(4))
        );
        assert_eq!((&request["precision"], &request["samples"]), (&json!("mixed"), &json!(3)));
        let quick = items(&Sizes { batch: Some(2), cpu: false, quick: true, all_shapes: false });
        assert!(quick.len() < all.len() && quick.iter().any(|item| item.name.ends_with("ir18, batch 2")));
    }
}
