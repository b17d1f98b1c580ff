use image::RgbImage;

use super::*;

/// A report with something in every part.
fn full() -> Report {
    let steps = (0..400).map(|index| StepPoint {
        step: 20 * index,
        epoch: 1 + index as u32 / 100,
        loss: 30.0 / (1.0 + index as f64 / 50.0),
        lr: 0.1,
        images_per_second: 500.0,
        grad_norm: 1.5,
        loss_scale: 1024.0,
        data_wait: 0.07,

        device_wait: 0.9,
        skipped: 3,
    });
    let evals = (1..=4).flat_map(|epoch| {
        ["lfw", "cfp_fp"].map(|set| EvalPoint {
            step: 2000 * u64::from(epoch),
            epoch,
            set: set.to_owned(),
            accuracy: 0.9 + 0.02 * f64::from(epoch),
            accuracy_std: 0.01,
            tar_at_far_1e3: 0.9,
            auc: 0.99,
            eer: 0.02,
            threshold: 1.4,
            roc: vec![(0.0, 0.5), (0.01, 0.9), (1.0, 1.0)],
        })
    });
    let prototypes = (1..=4).map(|epoch| PrototypePoint {
        step: 2000 * u64::from(epoch),
        epoch,
        cos_weight: 0.5,
        cos_weight_percentiles: Some([0.1, 0.4, 0.5, 0.6, 0.8]),
        cos_empirical: 0.6,
        cos_empirical_percentiles: Some([0.2, 0.5, 0.6, 0.7, 0.9]),
        cos_before_update: 0.6,
        cos_before_update_percentiles: Some([0.2, 0.5, 0.6, 0.7, 0.9]),
        adaptive_margin: 0.42,
        adaptive_margin_percentiles: Some([0.14, 0.35, 0.42, 0.49, 0.63]),
        angle_degrees: 30.0,
        angle_degrees_percentiles: Some([20.0, 25.0, 30.0, 35.0, 40.0]),
        drift_degrees: 10.0,
        drift_degrees_percentiles: Some([5.0, 8.0, 10.0, 12.0, 16.0]),
        hard_cosine: 0.3,
        hard_share: 0.07,
        classes_unvisited: Some(0),
    });
    let face = RgbImage::from_pixel(4, 4, image::Rgb([200, 150, 120]));
    let nearest =
        NearestPrototype { exemplar: face.clone(), name: "s1".to_owned(), cosine: 0.8, right: true };
    Report {
        title: "R50 <CASIA> & friends".to_owned(),
        facts: vec![("Device".to_owned(), "a <GPU>".to_owned())],
        steps: steps.collect(),
        evals: evals.collect(),
        prototypes: prototypes.collect(),
        faces: vec![FaceRow { face, name: "s1".to_owned(), nearest: vec![nearest] }],
        last_weights: Some("model.safetensors".to_owned()),
        best_weights: Some("model_best.safetensors".to_owned()),
        config_toml: "[train]\nout = \"a<b\"\n".to_owned(),
    }
}

#[test]
fn every_part_is_there() {
    let html = full().render();
    for part in [
        "<!DOCTYPE html>",
        "R50 &lt;CASIA&gt; &amp; friends",
        "a &lt;GPU&gt;",
        "aria-label=\"Loss\"",
        "aria-label=\"Learning rate\"",
        "aria-label=\"Throughput\"",
        "aria-label=\"Gradient norm\"",
        "aria-label=\"Time waiting for data\"",
        "aria-label=\"Loss scale\"",
        "images a second; 7\u{2009}% of the time waiting for data",
        "The updates of 3 steps were left out",
        "aria-label=\"TAR at FAR 10\u{207b}\u{b3}\"",
        "aria-label=\"Equal error rate\"",
        "aria-label=\"Area under the ROC curve\"",
        "aria-label=\"Threshold\"",
        "<code>model_best.safetensors</code>",
        "aria-label=\"Accuracy\"",
        "aria-label=\"Receiver operating characteristic, lfw\"",
        "aria-label=\"cos(x, W)\"",
        "aria-label=\"cos(x, Q)\"",
        "aria-label=\"Adaptive margin\"",
        "aria-label=\"Angle and drift\"",
        "aria-label=\"Hard samples\"",
        "aria-label=\"Classes not yet visited\"",
        "data:image/png;base64,",
        "out = &quot;a&lt;b&quot;",
        "prefers-color-scheme: dark",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert!(html.contains("98.00\u{2009}%"), "the accuracy of the last evaluation");
    assert!(!html.contains("class=\"missing\""));
}

#[test]
fn nothing_is_fetched_and_nothing_runs() {
    let html = full().render();
    for word in ["http:", "https:", "<script", "@import", "url(", "src=\"/", "href=\"/", "srcset"] {
        assert!(!html.contains(word), "{word}");
    }
    for place in html.match_indices("src=\"").chain(html.match_indices("href=\"")) {
        let value = html[place.0..].split('"').nth(1).unwrap();
        assert!(value.starts_with("data:"), "{value}");
    }
}

#[test]
fn missing_parts_are_said_to_be_missing() {
    let html = Report { title: "Empty".to_owned(), ..Report::default() }.render();
    for line in [
        "No facts about the run were recorded.",
        "No steps were logged.",
        "No verification set was evaluated.",
        "No ROC curve was recorded.",
        "No figures about prototypes were recorded.",
        "No sample faces were recorded.",
        "The configuration was not recorded.",
    ] {
        assert!(html.contains(line), "{line}");
    }
    assert!(!html.contains("<svg"));
}

#[test]
fn values_that_are_not_finite_break_nothing() {
    let mut report = full();
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    for (point, value) in report.steps.iter_mut().skip(3).zip(odd.into_iter().cycle().take(30)) {
        (point.loss, point.lr, point.images_per_second, point.grad_norm) = (value, value, value, value);
        (point.loss_scale, point.data_wait) = (value, value);
    }
    for (point, value) in report.evals.iter_mut().zip(odd) {
        (point.accuracy, point.accuracy_std, point.auc, point.threshold) = (value, value, value, value);
    }
    for (point, value) in report.prototypes.iter_mut().zip(odd) {
        (point.cos_weight, point.cos_empirical, point.angle_degrees) = (value, value, value);
        (point.drift_degrees, point.hard_share, point.hard_cosine) = (value, value, value);
        point.cos_weight_percentiles = Some([value; 5]);
    }
    report.evals[0].roc.extend([(f64::NAN, 0.5), (0.5, f64::NAN)]);
    report.faces[0].nearest[0].cosine = f64::NAN;
    let html = report.render();
    assert!(html.contains("The loss of 30 of 400 logged steps was not finite"));
    for word in ["NaN", "inf ", "inf\"", "nan"] {
        assert!(!html.contains(word), "{word}");
    }

    for point in &mut report.steps {
        point.loss = f64::NAN;
    }
    assert!(report.render().contains("Loss: no finite values to draw."));
}

#[test]
fn written_whole_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    Report::default().write(&path).unwrap();
    let report = full();
    report.write(&path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), report.render());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    let error = report.write(&folder.path().join("no/such/report.html")).unwrap_err();
    assert!(error.to_string().contains("report.html"), "{error}");
}
