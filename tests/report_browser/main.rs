//! The pages that epl writes, in a real browser: nothing in them may fail, and nothing may be fetched. Needs a browser
//! of the Chromium family (`EPL_BROWSER` names another one than the first that is found), and no GPU.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is a test; its helpers are too"
)]

mod browser;
mod find;

use std::path::Path;

use browser::{Browser, Page};
use epl::report::{
    EvalPoint, FaceRow, NearestPrototype, NoiseRow, NoiseSheet, OtherPrototype, Portrait, PrototypePoint,
    Report, StepPoint,
};
use image::RgbImage;
use serde_json::json;

/// What the tests ask a page for.
const FACTS: &str = "({
    sections: [...document.querySelectorAll('main > h2')].map(h => h.textContent),
    charts: [...document.querySelectorAll('figure.chart')]
        .map(f => [...f.querySelectorAll('svg')].find(s => s.clientWidth > 0)?.getAttribute('aria-label')),
    pictures: document.images.length,
    missing: document.querySelectorAll('.missing').length,
    scripts: document.scripts.length,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    background: getComputedStyle(document.body).backgroundColor,
    outside: [...document.querySelectorAll('svg')].filter(s => s.clientWidth > 0).flatMap(s => {
        const box = s.getBoundingClientRect();
        return [...s.querySelectorAll('text:not(.readout)')]
            .filter(t => { const r = t.getBoundingClientRect(); return r.left < box.left - 1 || r.right > box.right + 1; })
            .map(t => s.getAttribute('aria-label') + ': ' + t.textContent);
    }),
})";

/// A report with something in every part.
fn report() -> Report {
    let steps = (0..400).map(|index| StepPoint {
        step: 20 * index,
        epoch: 1 + index as u32 / 100,
        loss: if index == 7 { f64::NAN } else { 30.0 / (1.0 + index as f64 / 50.0) },
        lr: if index < 200 { 0.1 } else { 0.01 },
        images_per_second: 500.0 + (index % 7) as f64,
        grad_norm: 1.5,
        loss_scale: 1024.0 * (1 + index / 100) as f64,
        data_wait: 0.01 * (index % 10) as f64,

        device_wait: 0.9,
        skipped: index / 100,
    });
    let evals = (1..=4).flat_map(|epoch| {
        ["lfw", "cfp_fp", "agedb_30"].map(|set| EvalPoint {
            roc: vec![(0.0, 0.5), (0.01, 0.9), (1.0, 1.0)],
            step: 2000 * u64::from(epoch),
            epoch,
            set: set.to_owned(),
            accuracy: 0.9 + 0.01 * f64::from(epoch) - if epoch == 4 { 0.02 } else { 0.0 },
            accuracy_std: 0.01,
            tar_at_far_1e3: 0.9,
            auc: 0.99,
            eer: 0.02,
            threshold: 1.4,
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
        angle_degrees: 90.0 / f64::from(epoch),
        angle_degrees_percentiles: Some([20.0, 25.0, 30.0, 35.0, 40.0]),
        drift_degrees: 10.0,
        drift_degrees_percentiles: Some([5.0, 8.0, 10.0, 12.0, 16.0]),
        hard_cosine: 0.3,
        hard_share: 0.07,
        classes_unvisited: Some(0),
    });
    let nearest = |right| NearestPrototype { exemplar: face(), name: "s1".to_owned(), cosine: 0.8, right };
    Report {
        title: "R50 <CASIA> & friends".to_owned(),
        facts: vec![("Device".to_owned(), "a <GPU>".to_owned())],
        steps: steps.collect(),
        evals: evals.collect(),
        prototypes: prototypes.collect(),
        faces: vec![FaceRow {
            face: face(),
            name: "s1".to_owned(),
            nearest: vec![nearest(true), nearest(false)],
        }],
        last_weights: Some("model.safetensors".to_owned()),
        best_weights: Some("model_best.safetensors".to_owned()),
        config_toml: "[train]\nout = \"a<b\"\n".to_owned(),
    }
}

fn noise_sheet() -> NoiseSheet {
    let portrait = |name: &str| Portrait { picture: face(), name: name.to_owned() };
    let other = OtherPrototype { class: 2, cosine: 0.6, example: Some(portrait("faces/c/3.jpg")) };
    let row = NoiseRow {
        sample: portrait("faces/a/1.jpg"),
        label: 0,
        cosine: 0.1,
        example: Some(portrait("faces/a/2.jpg")),
        other: Some(other),
    };
    let alone = NoiseRow { example: None, other: None, ..row.clone() };
    NoiseSheet {
        title: "Noise".to_owned(),
        facts: vec![("Samples".to_owned(), "2".to_owned())],
        rows: vec![row, alone],
    }
}

fn face() -> RgbImage {
    RgbImage::from_pixel(4, 4, image::Rgb([200, 150, 120]))
}

/// Loads a page in light and dark and as wide as a screen and a phone, which must find no fault with it.
#[track_caller]
fn clean(browser: &mut Browser, path: &Path) -> Page {
    let phone = browser.load(path, 390, true, FACTS);
    let screen = browser.load(path, 1280, false, FACTS);
    for page in [&phone, &screen] {
        assert_eq!(page.problems, Vec::<String>::new(), "{}", path.display());
        assert_eq!(page.result["overflow"], 0, "the page scrolls sideways");
        assert_eq!(page.result["outside"], json!([]), "text leaves its chart");
        assert_eq!(page.result["scripts"], 0);
    }
    assert_ne!(phone.result["background"], screen.result["background"], "dark looks like light");
    assert_eq!(phone.result["charts"], screen.result["charts"]);
    screen
}

#[test]
fn browsers_find_no_fault_with_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let mut browser = Browser::start();
    report().write(&path).unwrap();
    let page = clean(&mut browser, &path);
    let sections = ["Run", "Training", "Verification", "Prototypes", "Sample faces", "Configuration"];
    assert_eq!(page.result["sections"], json!(sections));
    let charts = [
        "Loss",
        "Learning rate",
        "Throughput",
        "Time waiting for data",
        "Gradient norm",
        "Loss scale",
        "Accuracy",
        "TAR at FAR 10\u{207b}\u{b3}",
        "Equal error rate",
        "Area under the ROC curve",
        "Threshold",
        "Receiver operating characteristic, lfw",
        "Receiver operating characteristic, cfp_fp",
        "Receiver operating characteristic, agedb_30",
        "cos(x, W)",
        "cos(x, Q)",
        "cos(x, Q) before the update",
        "Adaptive margin",
        "Angle and drift",
        "Hard samples",
        "Classes not yet visited",
    ];
    assert_eq!(page.result["charts"], json!(charts));
    assert_eq!((&page.result["pictures"], &page.result["missing"]), (&json!(3), &json!(0)));

    // A run of which nothing was recorded.
    Report { title: "Empty".to_owned(), ..Report::default() }.write(&path).unwrap();
    let page = clean(&mut browser, &path);
    assert_eq!(page.result["sections"], json!(sections));
    assert_eq!((&page.result["charts"], &page.result["missing"]), (&json!([]), &json!(7)));

    noise_sheet().write(&path).unwrap();
    let page = clean(&mut browser, &path);
    assert_eq!(page.result["pictures"], 4);
}

/// The check is worth nothing unless it finds what it is for.
#[test]
fn faults_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.html");
    let mut browser = Browser::start();
    for (fault, expected) in [
        ("<script>nonsense(</script>", "a script failed"),
        ("<script>undefined_function()</script>", "a script failed"),
        ("<script>console.error('oh')</script>", "wrote to the console"),
        ("<img alt='gone' src='gone.png'>", "gone.png"),
        ("<img alt='gone' src='gone.png'>", "could not be loaded"),
        ("<img alt='odd' src='data:image/png;base64,AAAA'>", "a picture is broken: \"odd\""),
        ("<svg><line x1='NaN' x2='1' y1='0' y2='1'/></svg>", "<line> attribute x1"),
        ("<svg><path d='M0 inf'/></svg>", "<path> attribute d"),
        (
            "<link rel='stylesheet' href='https://style.invalid/a.css'>",
            "requested: https://style.invalid/a.css",
        ),
    ] {
        let html = report().render();
        assert_eq!(html.matches("</main>").count(), 1);
        std::fs::write(&path, html.replace("</main>", &format!("{fault}</main>"))).unwrap();
        let Page { problems, .. } = browser.load(&path, 1280, false, FACTS);
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{fault}: {problems:?}");
    }

    let wide =
        "<p style='width:3000px'>wide</p><svg viewBox='0 0 10 10' width='10'><text x='9'>long</text></svg>";
    std::fs::write(&path, report().render().replace("</main>", &format!("{wide}</main>"))).unwrap();
    let page = browser.load(&path, 1280, false, FACTS);
    assert!(page.result["overflow"].as_i64().unwrap() > 1000, "{}", page.result["overflow"]);
    assert_eq!(page.result["outside"], json!(["null: long"]));
}
