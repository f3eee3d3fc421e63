//! The picture itself: an SVG, drawn with plotters.

use std::{error::Error, ops::Range};

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    numbers::{plain, si, tick},
    place::{Field, Label, Placed, Rect, Segment, place},
};

/// What is drawn.
#[derive(Debug, Clone)]
pub(super) struct Picture {
    pub(super) title: String,
    pub(super) subtitle: String,
    /// Lines under the axes.
    pub(super) notes: Vec<String>,
    /// `None` where the machine's limits are not known.
    pub(super) roofs: Option<Roofs>,
    pub(super) series: Vec<Series>,
}

/// What the machine can do at most.
#[derive(Debug, Clone)]
pub(super) struct Roofs {
    /// How fast it reads.
    pub(super) bytes_per_second: f64,
    /// Instructions and the operations of each in a second.
    pub(super) peaks: Vec<(String, f64)>,
}

/// One test.
#[derive(Debug, Clone)]
pub(super) struct Series {
    pub(super) name: String,
    /// A prompt, or generation: they have marks of their own.
    pub(super) is_prompt: bool,
    pub(super) marks: Vec<Mark>,
}

impl Series {
    fn kind(&self) -> &'static str {
        if self.is_prompt { "prompt" } else { "generation" }
    }
}

/// A kind of op, or a whole test.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    /// What it is, and its figures.
    pub(super) label: [String; 2],
    /// Operations for each byte read.
    pub(super) intensity: f64,
    /// Operations a second.
    pub(super) rate: f64,
    /// Its part of the test's time; `None` for the whole test.
    pub(super) share: Option<f64>,
}

/// Pixels of the picture.
const SIZE: (u32, u32) = (1280, 860);
/// Fonts that most systems have one of.
const FONT: &str = "Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif";
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const FAINT_INK: RGBColor = RGBColor(0x59, 0x59, 0x59);
const GRID: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);
/// Where no point can be.
const BEYOND: RGBColor = RGBColor(0xf4, 0xf4, 0xf2);
/// Colours that people with any colour vision tell apart (Okabe and Ito 2008): cold ones for prompts,
/// warm ones for generation.
const COLD: [RGBColor; 3] =
    [RGBColor(0x00, 0x72, 0xb2), RGBColor(0x00, 0x9e, 0x73), RGBColor(0x56, 0xb4, 0xe9)];
const WARM: [RGBColor; 3] =
    [RGBColor(0xd5, 0x5e, 0x00), RGBColor(0xcc, 0x79, 0xa7), RGBColor(0xe6, 0x9f, 0x00)];

const LABEL_SIZE: f64 = 13.0;
const LINE: f64 = 16.0;

type Drawn<T> = Result<T, Box<dyn Error + Send + Sync>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A point in pixels.
type Pixel = (f64, f64);

/// Draws the picture as SVG.
///
/// # Errors
/// What plotters says.
pub(super) fn svg(picture: &Picture) -> Drawn<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        draw(&area, picture)?;
        area.present()?;
    }
    Ok(with_title(&text, picture))
}

/// The same with a title and a description that screen readers find.
fn with_title(svg: &str, picture: &Picture) -> String {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
    let Some((head, rest)) = svg.split_once("<svg ") else { return svg.to_owned() };
    let Some((attributes, rest)) = rest.split_once('>') else { return svg.to_owned() };
    let (title, about) = (escape(&picture.title), escape(&picture.subtitle));
    format!(
        "{head}<svg role=\"img\" {attributes}>\n<title>{title}</title>\n<desc>{about}</desc>{rest}"
    )
}

fn text<'a>(size: f64, color: &RGBColor, at: (HPos, VPos)) -> TextStyle<'a> {
    // The SVG backend divides by 1.24: then this is the size in pixels.
    let font = (FONT, size * 1.24).into_font();
    font.color(color).pos(Pos::new(at.0, at.1))
}

fn bold<'a>(size: f64, color: &RGBColor, at: (HPos, VPos)) -> TextStyle<'a> {
    let font = (FONT, size * 1.24, FontStyle::Bold).into_font();
    font.color(color).pos(Pos::new(at.0, at.1))
}

/// A text's width in pixels, rather more than less: fonts differ.
fn width(text: &str, size: f64) -> f64 {
    let wide = |c: char| match c {
        'i' | 'j' | 'l' | '.' | ',' | ' ' | '\'' | '|' => 0.34,
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 0.95,
        c if c.is_ascii_uppercase() => 0.72,
        c if c.is_ascii() => 0.62,
        _ => 1.0,
    };
    text.chars().map(wide).sum::<f64>() * size
}

/// The text, or as much of it as `room` pixels hold.
fn fitting(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_owned();
    }
    let mut short = String::new();
    for c in text.chars() {
        short.push(c);
        if width(&short, size) + size > room {
            break;
        }
    }
    short + "…"
}

fn put(area: &Area<'_>, line: &str, at: Pixel, style: TextStyle<'_>) -> Drawn<()> {
    let at = (at.0.round() as i32, at.1.round() as i32);
    Ok(area.draw(&Text::new(line.to_owned(), at, style))?)
}

fn draw(area: &Area<'_>, picture: &Picture) -> Drawn<()> {
    let left = (HPos::Left, VPos::Top);
    let room = f64::from(SIZE.0) - 2.0 * 28.0;
    let title = fitting(&picture.title, 21.0, room);
    put(area, &title, (28.0, 22.0), bold(21.0, &INK, left))?;
    let subtitle = fitting(&picture.subtitle, 14.5, room);
    put(area, &subtitle, (28.0, 52.0), text(14.5, &FAINT_INK, left))?;
    let under = 16.0 * picture.notes.len() as f64 + 14.0;
    for (at, line) in picture.notes.iter().enumerate() {
        let y = f64::from(SIZE.1) - under + 16.0 * at as f64;
        let line = fitting(line, 12.0, room);
        put(area, &line, (28.0, y), text(12.0, &FAINT_INK, left))?;
    }
    let (x, y) = ranges(picture);
    let mut chart = ChartBuilder::on(area)
        .margin_top(84)
        .margin_bottom(under as i32 + 6)
        .margin_left(20)
        .margin_right(28)
        .x_label_area_size(52)
        .y_label_area_size(82)
        .build_cartesian_2d(x.clone().log_scale(), y.clone().log_scale())?;
    if let Some(roofs) = &picture.roofs {
        let points = beyond(roofs, &x, &y).map(|point| chart.backend_coord(&point));
        area.draw(&Polygon::new(points, BEYOND.filled()))?;
    }
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT_INK)
        .x_labels(12)
        .y_labels(12)
        .x_label_formatter(&|value| plain(*value))
        .y_label_formatter(&|value| tick(*value))
        .label_style(text(13.0, &INK, left))
        .axis_desc_style(text(14.0, &INK, left))
        .x_desc(
            "operational intensity: operations for each byte of weights and KV cache (FLOP/byte)",
        )
        .y_desc("performance (FLOP/s)")
        .draw()?;
    let pixel = |x: f64, y: f64| -> Pixel {
        let (x, y) = chart.backend_coord(&(x, y));
        (f64::from(x), f64::from(y))
    };
    let corners = (pixel(x.start, y.end), pixel(x.end, y.start));
    let bounds = Rect {
        left: corners.0.0,
        top: corners.0.1,
        width: corners.1.0 - corners.0.0,
        height: corners.1.1 - corners.0.1,
    };
    let mut field = Field::default();
    legend(area, picture, &bounds, &mut field)?;
    if let Some(roofs) = &picture.roofs {
        draw_roofs(area, roofs, (&x, &y), &bounds, &pixel, &mut field)?;
    }
    marks(area, picture, &bounds, &pixel, field)
}

/// The axes: all points and the place where the roofs meet, with room around.
fn ranges(picture: &Picture) -> (Range<f64>, Range<f64>) {
    let marks = || picture.series.iter().flat_map(|series| &series.marks);
    let mut across: Vec<f64> = marks().map(|mark| mark.intensity).collect();
    let mut up: Vec<f64> = marks().map(|mark| mark.rate).collect();
    if let Some(roofs) = &picture.roofs {
        for (_, peak) in &roofs.peaks {
            across.push(peak / roofs.bytes_per_second);
            up.push(*peak);
        }
    }
    let range = |values: &[f64], below: f64, above: f64| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        if low.is_finite() { low / below..high * above } else { 0.1..1000.0 }
    };
    (range(&across, 6.0, 8.0), range(&up, 5.0, 3.0))
}

/// The part of the plane that the machine cannot reach.
fn beyond(roofs: &Roofs, x: &Range<f64>, y: &Range<f64>) -> [(f64, f64); 6] {
    let peak = roofs.peaks.iter().map(|(_, peak)| *peak).fold(0.0, f64::max);
    let start = slope_start(roofs, x, y);
    let ridge = (peak / roofs.bytes_per_second, peak);
    [(x.start, y.end), (x.start, start.1), start, ridge, (x.end, peak), (x.end, y.end)]
}

/// Where the bandwidth's line enters the picture.
fn slope_start(roofs: &Roofs, x: &Range<f64>, y: &Range<f64>) -> Pixel {
    let from = x.start.max(y.start / roofs.bytes_per_second);
    (from, from * roofs.bytes_per_second)
}

fn line(area: &Area<'_>, segment: Segment, style: ShapeStyle) -> Drawn<()> {
    let round = |(x, y): Pixel| (x.round() as i32, y.round() as i32);
    let points = vec![round(segment.from), round(segment.to)];
    Ok(area.draw(&PathElement::new(points, style))?)
}

fn draw_roofs(
    area: &Area<'_>,
    roofs: &Roofs,
    (x, y): (&Range<f64>, &Range<f64>),
    bounds: &Rect,
    pixel: &dyn Fn(f64, f64) -> Pixel,
    field: &mut Field,
) -> Drawn<()> {
    let highest = roofs.peaks.iter().map(|(_, peak)| *peak).fold(0.0, f64::max);
    let start = slope_start(roofs, x, y);
    let from = pixel(start.0, start.1);
    let to = pixel(highest / roofs.bytes_per_second, highest);
    let mut lines = vec![Segment { from, to }];
    let mut above: Option<f64> = None;
    let mut peaks = roofs.peaks.clone();
    peaks.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (name, peak) in &peaks {
        let from = pixel(peak / roofs.bytes_per_second, *peak);
        lines.push(Segment { from, to: (bounds.right(), from.1) });
        let name = format!("{name}: {}FLOP/s", si(*peak));
        // Over its line, or under it where another line is close.
        let close = above.is_some_and(|above| from.1 - above < 24.0);
        let (v_pos, top) =
            if close { (VPos::Top, from.1 + 5.0) } else { (VPos::Bottom, from.1 - 18.0) };
        let at = (bounds.right() - 8.0, if close { top } else { from.1 - 3.0 });
        put(area, &name, at, text(LABEL_SIZE, &INK, (HPos::Right, v_pos)))?;
        let wide = width(&name, LABEL_SIZE);
        field.texts.push(Rect { left: at.0 - wide, top, width: wide, height: LINE });
        above = Some(from.1);
    }
    for segment in &lines {
        line(area, *segment, INK.stroke_width(2))?;
    }
    // To the left of the slope, in the corner that nothing can reach.
    let name = format!("memory: {}B/s read", si(roofs.bytes_per_second));
    let part = 0.42;
    let at = (from.0 + (to.0 - from.0) * part, from.1 + (to.1 - from.1) * part);
    let wide = width(&name, LABEL_SIZE);
    put(area, &name, (at.0 - 12.0, at.1), text(LABEL_SIZE, &INK, (HPos::Right, VPos::Bottom)))?;
    field.texts.push(Rect {
        left: at.0 - 12.0 - wide,
        top: at.1 - LINE,
        width: wide,
        height: LINE,
    });
    field.lines.extend(lines);
    Ok(())
}

fn radius(mark: &Mark) -> f64 {
    // Areas are as shares of time.
    mark.share.map_or(8.0, |share| 4.5 + 9.0 * share.clamp(0.0, 1.0).sqrt())
}

fn color(series: &[Series], at: usize) -> RGBColor {
    let alike = series[..at].iter().filter(|other| other.is_prompt == series[at].is_prompt).count();
    let colors = if series[at].is_prompt { COLD } else { WARM };
    colors[alike % colors.len()]
}

/// A circle for prompts, a triangle for generation; hollow for a whole test.
fn shape(
    area: &Area<'_>,
    (x, y): Pixel,
    mark: &Mark,
    is_prompt: bool,
    color: RGBColor,
) -> Drawn<()> {
    let radius = radius(mark);
    let at = (x.round() as i32, y.round() as i32);
    let size = radius.round() as i32;
    // A triangle of the circle's area.
    let triangle = |grown: f64| {
        let r = radius * 1.3 + grown;
        let corner = |dx: f64, dy: f64| ((x + dx * r).round() as i32, (y + dy * r).round() as i32);
        vec![corner(0.0, -1.0), corner(0.87, 0.5), corner(-0.87, 0.5)]
    };
    let closed = |points: Vec<(i32, i32)>| {
        let first = points[0];
        points.into_iter().chain([first]).collect::<Vec<_>>()
    };
    match (is_prompt, mark.share.is_some()) {
        (true, true) => {
            area.draw(&Circle::new(at, size, color.mix(0.85).filled()))?;
            area.draw(&Circle::new(at, size, WHITE.stroke_width(1)))?;
        }
        (true, false) => area.draw(&Circle::new(at, size, color.stroke_width(3)))?,
        (false, true) => {
            area.draw(&Polygon::new(triangle(0.0), color.mix(0.85).filled()))?;
            area.draw(&PathElement::new(closed(triangle(0.0)), WHITE.stroke_width(1)))?;
        }
        (false, false) => {
            area.draw(&PathElement::new(closed(triangle(0.0)), color.stroke_width(3)))?;
        }
    }
    Ok(())
}

/// What the marks mean, in the corner that nothing can reach.
fn legend(area: &Area<'_>, picture: &Picture, bounds: &Rect, field: &mut Field) -> Drawn<()> {
    let (left, mut y) = (bounds.left + 26.0, bounds.top + 24.0);
    let mut wide = 0.0f64;
    for (at, series) in picture.series.iter().enumerate() {
        let sample =
            |share| Mark { label: [const { String::new() }; 2], intensity: 1.0, rate: 1.0, share };
        let color = color(&picture.series, at);
        let ops = series.marks.iter().any(|mark| mark.share.is_some());
        let (mut x, mut name) = (left, format!("{}: the whole {}", series.name, series.kind()));
        if ops {
            shape(area, (x, y), &sample(Some(0.1)), series.is_prompt, color)?;
            (x, name) = (
                x + 24.0,
                format!("{}: kinds of ops, and the whole {}", series.name, series.kind()),
            );
        }
        shape(area, (x, y), &sample(None), series.is_prompt, color)?;
        let at = (x + 18.0, y);
        wide = wide.max(at.0 + width(&name, LABEL_SIZE) - bounds.left);
        put(area, &name, at, text(LABEL_SIZE, &INK, (HPos::Left, VPos::Center)))?;
        y += 24.0;
    }
    field.texts.push(Rect {
        left: bounds.left,
        top: bounds.top,
        width: wide,
        height: y - bounds.top,
    });
    Ok(())
}

/// A mark in pixels, and the colour of its series.
struct Spot<'a> {
    mark: &'a Mark,
    is_prompt: bool,
    color: RGBColor,
    label: Label,
}

fn spots<'a>(picture: &'a Picture, pixel: &dyn Fn(f64, f64) -> Pixel) -> Vec<Spot<'a>> {
    let mut spots = Vec::new();
    for (group, series) in picture.series.iter().enumerate() {
        for mark in &series.marks {
            let [name, value] = &mark.label;
            let label = Label {
                mark: pixel(mark.intensity, mark.rate),
                radius: radius(mark) * if series.is_prompt { 1.0 } else { 1.3 },
                width: width(name, LABEL_SIZE).max(width(value, LABEL_SIZE - 1.0)),
                height: 2.0 * LINE,
                group,
            };
            let (is_prompt, color) = (series.is_prompt, color(&picture.series, group));
            spots.push(Spot { mark, is_prompt, color, label });
        }
    }
    spots
}

/// More would make a thicket of the picture; the whole tests come first, then what takes most time.
pub(super) const MOST_LABELS: usize = 16;

fn marks(
    area: &Area<'_>,
    picture: &Picture,
    bounds: &Rect,
    pixel: &dyn Fn(f64, f64) -> Pixel,
    mut field: Field,
) -> Drawn<()> {
    let mut spots = spots(picture, pixel);
    let marks = spots.iter().map(|spot| Rect::around(spot.label.mark, spot.label.radius));
    field.marks.extend(marks);
    let weight = |spot: &Spot<'_>| spot.mark.share.unwrap_or(f64::INFINITY);
    spots.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
    let named: Vec<&Spot<'_>> = spots.iter().take(MOST_LABELS).collect();
    let labels: Vec<Label> = named.iter().map(|spot| spot.label).collect();
    let placed = place(&bounds.grown(-6.0), &field, &labels);
    let placed = || named.iter().zip(&placed).filter_map(|(spot, at)| Some((spot, at.as_ref()?)));
    for (spot, Placed { leader, .. }) in placed() {
        line(area, *leader, spot.color.mix(0.7).stroke_width(1))?;
    }
    // Large ones first, so that small ones show; what is hollow hides nothing.
    let (whole, ops): (Vec<_>, Vec<_>) = spots.iter().partition(|spot| spot.mark.share.is_none());
    for spot in ops.into_iter().chain(whole) {
        shape(area, spot.label.mark, spot.mark, spot.is_prompt, spot.color)?;
    }
    for (spot, Placed { place, leader }) in placed() {
        let [name, value] = &spot.mark.label;
        // Flush with the end of its leader.
        let (x, side) = if leader.to.0 <= place.left {
            (place.left + 2.0, HPos::Left)
        } else {
            (place.right() - 2.0, HPos::Right)
        };
        let anchor = (side, VPos::Center);
        put(area, name, (x, place.top + 0.5 * LINE), bold(LABEL_SIZE, &INK, anchor))?;
        let style = text(LABEL_SIZE - 1.0, &FAINT_INK, anchor);
        put(area, value, (x, place.top + 1.5 * LINE), style)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(fitting("short", 10.0, 100.0), "short");
        let cut = fitting(&"long ".repeat(50), 10.0, 100.0);
        assert!(cut.ends_with('…') && width(&cut, 10.0) <= 110.0, "{cut}");
    }
}
