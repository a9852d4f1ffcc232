//! The picture: what a packet costs against how many flows there are.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::finding::{Finding, OURS};

const SIZE: (u32, u32) = (960, 420);

/// One line of the picture: name, and cycles by flows.
type Line = (String, Vec<(f64, f64)>);

/// Draws cycles per packet of a pipeline's findings, a panel for each direction.
pub fn draw(file: &Path, findings: &[Finding]) -> Result<()> {
    let doing = || format!("drawing {}", file.display());
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE).with_context(doing)?;
    let panels = root.split_evenly((1, 2));
    for (panel, direction) in panels.iter().zip(["encap", "decap"]) {
        let lines = lines(findings, direction);
        draw_panel(panel, direction, &lines)
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(doing)?;
    }
    root.present().with_context(doing)
}

fn lines(findings: &[Finding], direction: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for Finding { record, .. } in findings {
        let case = |key| record.case.iter().find(|(name, _)| *name == key).map(|(_, value)| value);
        if record.metric != "cycles" || case("direction").and_then(|d| d.as_str()) != Some(direction) {
            continue;
        }
        let Some(flows) = case("flows").and_then(serde_json::Value::as_f64) else { continue };
        let peers = record.peers.iter().map(|(name, cycles)| (*name, *cycles));
        for (name, cycles) in [(OURS, record.value)].into_iter().chain(peers) {
            match lines.iter_mut().find(|(line, _)| line == name) {
                Some((_, points)) => points.push((flows, cycles)),
                None => lines.push((name.to_owned(), vec![(flows, cycles)])),
            }
        }
    }
    lines
}

fn draw_panel(
    panel: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    direction: &str,
    lines: &[Line],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let most = points().map(|point| point.1).fold(1.0, f64::max);
    let (fewest, many) = points().fold((f64::MAX, 1.0), |(low, high), (x, _)| (x.min(low), x.max(high)));
    let mut chart = ChartBuilder::on(panel)
        .caption(format!("{direction}: cycles per packet against flows"), ("sans-serif", 16))
        .margin(10)
        .margin_right(90)
        .x_label_area_size(34)
        .y_label_area_size(48)
        .build_cartesian_2d((fewest..many * 1.01).log_scale(), 0.0..most * 1.1)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("flows")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .draw()?;
    for ((name, points), color) in lines.iter().zip([BLUE, RED, BLACK, GREEN]) {
        chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?;
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, color.filled())))?;
        let style = ("sans-serif", 12).into_font().color(&color).pos(Pos::new(HPos::Left, VPos::Center));
        if let Some(last) = points.last() {
            chart
                .plotting_area()
                .draw(&(EmptyElement::at(*last) + Text::new(name.clone(), (6, 0), style)))?;
        }
    }
    Ok(())
}
