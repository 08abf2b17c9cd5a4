package web

import (
	"fmt"
	"strings"
	"time"
)

// The drawing of a chart, in units of its viewBox.
const (
	chartWidth  = 720
	chartBottom = 100
	chartTop    = 6
	// chartColumns is how many points a line has at most.
	chartColumns = 180
)

// chart is a line over the last hours, drawn here as SVG.
type chart struct {
	Name  string // "waiting"
	Title string // for those who do not see it
	Since time.Time
	Line  string // path data
	Area  string
	Top   int64 // the largest value
	Now   int64
	Marks []string // times below the line, at equal distances
}

// draw makes a chart of samples; nil when there are fewer than two.
func draw(name, what string, samples []sample, value func(sample) int64) *chart {
	if len(samples) < 2 {
		return nil
	}
	first, last := samples[0].at, samples[len(samples)-1].at
	span := max(last.Sub(first), time.Second)
	c := &chart{Name: name, Since: first, Now: value(samples[len(samples)-1])}
	// The largest of what falls into a column: a peak is what people look for.
	column := make([]int64, chartColumns+1)
	has := make([]bool, chartColumns+1)
	for _, s := range samples {
		i := int(chartColumns * s.at.Sub(first) / span)
		column[i], has[i] = max(column[i], value(s)), true
		c.Top = max(c.Top, value(s))
	}
	var b strings.Builder
	for i, v := range column {
		if !has[i] {
			continue
		}
		letter := "L"
		if b.Len() == 0 {
			letter = "M"
		}
		x := chartWidth * i / chartColumns
		y := chartBottom - int64(chartBottom-chartTop)*v/max(c.Top, 1)
		fmt.Fprintf(&b, "%s%d %d", letter, x, y)
	}
	c.Line = b.String()
	c.Area = c.Line + fmt.Sprintf("L%d %dL%d %dZ", chartWidth, chartBottom, 0, chartBottom)
	c.Title = fmt.Sprintf("%s since %s: at most %d, now %d", what, first.Local().Format("15:04"), c.Top, c.Now)
	for i := range 4 {
		at := first.Add(span * time.Duration(i) / 3)
		c.Marks = append(c.Marks, at.Local().Format("15:04"))
	}
	return c
}
