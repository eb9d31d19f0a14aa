"""Charts of what the benches here measured, as SVG: what `bench_peers.py` and `bench_growth.py` draw with."""

OURS, THEIRS = "#1b6e8c", "#9aa0a6"


def text(x, y, words, more=""):
    return f'<text x="{x:.0f}" y="{y:.0f}" {more}>{words}</text>'


def page(width, height, marks):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" font-family="sans-serif" font-size="15">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *marks, "</svg>"]) + "\n"


def systems(rows, parts, title):
    """A bar per system and part, and time of a denoiser's call against the size of the weights."""
    width, bar, left = 960, 24, 270
    longest = {part: max(row[part][1] for row in rows) for part in parts}
    out, y = [], 40
    names = {"denoiser": "denoiser call", "vae": "decoding an image"}
    for part in parts:
        out.append(text(16, y, f"{names[part]}, seconds: median, range of turns, and in brackets the ratio to OpenVINO's W8A8", 'font-weight="bold"'))
        for row in rows:
            y += bar + 6
            least, median, most = row[part]
            scale = 520 / longest[part] if longest[part] else 0
            own = OURS if row["own"] else THEIRS
            high = min(row[part][2], longest[part] * 1.25)
            out.append(text(left - 8, y + 5, row["name"], 'text-anchor="end"'))
            out.append(f'<rect x="{left}" y="{y - bar / 2:.0f}" width="{median * scale:.1f}" height="{bar}" fill="{own}"/>')
            out.append(f'<path d="M{left + least * scale:.1f} {y}H{left + high * scale:.1f}" stroke="#222" stroke-width="1.5"/>')
            out.append(text(left + max(median, high) * scale + 8, y + 5, f"{median:.2f}" + (f" ({row['ratio'][part]:.2f})" if part in row["ratio"] else "")))
        y += bar + 34
    part = parts[0]
    out.append(text(16, y, f"{names[part]} against size of the weights, GB", 'font-weight="bold"'))
    top, height, most = y + 16, 220, max(row["bytes"] for row in rows) * 1.1
    slowest = max(row[part][1] for row in rows) * 1.1
    out.append(f'<path d="M{left} {top}V{top + height}H{left + 600}" fill="none" stroke="#222"/>')
    label = top + height + 100
    for row in sorted(rows, key=lambda row: row[part][1]):
        x, at = left + 600 * row["bytes"] / most, top + height * (1 - row[part][1] / slowest)
        # From the fastest up; names of neighbours do not lie on one another.
        label = min(at, label - 18)
        out.append(f'<circle cx="{x:.1f}" cy="{at:.1f}" r="6" fill="{OURS if row["own"] else THEIRS}"/>')
        out.append(text(x + 10, label + 5, row["name"]))
    for tick in range(0, int(most / 1e9) + 1):
        out.append(text(left + 600 * tick * 1e9 / most, top + height + 18, str(tick), 'text-anchor="middle"'))
    for tick in range(0, int(slowest) + 1, max(1, int(slowest) // 4)):
        out.append(text(left - 8, top + height * (1 - tick / slowest) + 5, f"{tick} s", 'text-anchor="end"'))
    y = top + height + 44
    out.append(text(16, y, title, 'fill="#666" font-size="12"'))
    return page(width, y + 16, out)


def growth(panels, title):
    """A panel for each axis: seconds over what grows, a line per system. `panels`: (name of the axis, places, {system: seconds or
    None where it has none})."""
    # Names of systems stand to the right of a panel.
    width, height, gap, left, names = 300, 220, 90, 60, 170
    out = []
    for i, (axis, places, systems) in enumerate(panels):
        x0, y0 = left + i % 2 * (width + names), 50 + i // 2 * (height + gap)
        most = max(t for times in systems.values() for t in times if t is not None) * 1.1
        x = lambda place: x0 + width * place / max(places)
        y = lambda seconds: y0 + height * (1 - seconds / most)
        out.append(text(x0, y0 - 16, axis, 'font-weight="bold"'))
        out.append(f'<path d="M{x0} {y0}V{y0 + height}H{x0 + width}" fill="none" stroke="#222"/>')
        for tick in range(5):
            seconds = most * tick / 4
            out.append(text(x0 - 8, y(seconds) + 5, f"{seconds:.3g}", 'text-anchor="end" font-size="12"'))
        shown = -100
        for place in places:
            if x(place) - shown >= 28:
                shown = x(place)
                out.append(text(shown, y0 + height + 18, f"{place:g}", 'text-anchor="middle" font-size="12"'))
        for j, (name, times) in enumerate(systems.items()):
            colour = OURS if j == 0 else THEIRS
            points = [(x(p), y(t)) for p, t in zip(places, times) if t is not None]
            line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in points]
            if points:
                a, b = points[-1]
                out.append(text(a + 8, b + 5, name, f'fill="{colour}"'))
    rows = (len(panels) + 1) // 2
    out.append(text(left, 40 + rows * (height + gap), title, 'fill="#666" font-size="12"'))
    return page(2 * (width + names) + left, 60 + rows * (height + gap), out)
