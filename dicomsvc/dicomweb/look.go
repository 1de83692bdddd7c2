package dicomweb

import (
	"image"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"osteon/dicomsvc/pixel"
)

// look is what the query parameters of a rendered resource ask for (PS3.18 §8.3.5.1).
type look struct {
	view    pixel.View
	quality int
}

// parseLook reads the parameters. Annotations are not burned in and no ICC profile is embedded, which the standard leaves to the origin server:
// these parameters are checked and have no effect. Parameters of other names are ignored (§8.3.3).
func parseLook(params []parameter, thumbnail bool) (look, *problem) {
	var l look
	if thumbnail {
		l.view.Columns, l.view.Rows = thumbnailSide, thumbnailSide
	}
	for _, p := range params {
		var bad *problem
		switch p.name {
		case "window":
			bad = l.window(p.value)
		case "viewport":
			bad = l.viewport(p.value)
		case "quality":
			n, err := strconv.Atoi(p.value)
			if err != nil || n < 1 || n > 100 {
				bad = badLook("quality", "give a whole number from 1 to 100")
			}
			l.quality = n
		case "annotation":
			for word := range strings.SplitSeq(p.value, ",") {
				if word != "patient" && word != "technique" {
					bad = badLook("annotation", "give patient, technique or both, with a comma between")
				}
			}
		case "iccprofile":
			if !slices.Contains([]string{"no", "yes", "srgb", "adobergb", "rommrgb", "displayp3"}, p.value) {
				bad = badLook("iccprofile", "give no, yes, srgb, adobergb, rommrgb or displayp3")
			}
		}
		if bad != nil {
			return l, bad
		}
	}
	return l, nil
}

func badLook(parameter, remedy string) *problem {
	return newProblem(http.StatusBadRequest, "the parameter "+parameter+" cannot be used", remedy)
}

// window reads center, width and function (PS3.18 §8.3.5.1.3). The function may be left out.
func (l *look) window(value string) *problem {
	const remedy = "give center,width,function: two decimal numbers and linear, linear-exact or sigmoid, with a width of at least 1"
	fields := strings.Split(value, ",")
	if len(fields) != 2 && len(fields) != 3 {
		return badLook("window", remedy)
	}
	center, err := strconv.ParseFloat(fields[0], 64)
	width, err2 := strconv.ParseFloat(fields[1], 64)
	if err != nil || err2 != nil {
		return badLook("window", remedy)
	}
	w := &pixel.Window{Center: center, Width: width}
	if len(fields) == 3 {
		w.Function = strings.ReplaceAll(strings.ToUpper(fields[2]), "-", "_")
	}
	if w.Validate() != nil {
		return badLook("window", remedy)
	}
	l.view.Window = w
	return nil
}

// viewport reads vw,vh and, behind them, the part sx,sy,sw,sh of the image that is shown in it (PS3.18 §8.3.5.1.4): empty fields mean the
// beginning and the rest, a negative width or height turns the image over.
func (l *look) viewport(value string) *problem {
	bad := badLook("viewport", "give vw,vh or vw,vh,sx,sy,sw,sh in pixels: the box to fit the image into, and the part of the image; "+
		"vw and vh are from 1 to "+strconv.Itoa(pixel.ViewSideMax))
	fields := strings.Split(value, ",")
	if len(fields) != 2 && len(fields) != 6 {
		return bad
	}
	var n [6]int
	for i, field := range fields {
		if field == "" && i >= 2 {
			continue
		}
		v, err := strconv.ParseFloat(field, 64)
		if err != nil || !(math.Abs(v) <= math.MaxInt32) || v < 0 && i < 4 {
			return bad
		}
		n[i] = int(v)
	}
	if n[0] < 1 || n[1] < 1 {
		return bad
	}
	if n[0] > pixel.ViewSideMax || n[1] > pixel.ViewSideMax {
		return newProblem(http.StatusRequestEntityTooLarge, "the viewport is larger than what is rendered", bad.remedy)
	}
	l.view.Columns, l.view.Rows = n[0], n[1]
	l.view.Mirror, l.view.Flip = n[4] < 0, n[5] < 0
	part := image.Rect(n[2], n[3], math.MaxInt32, math.MaxInt32)
	for i, side := range []*int{&part.Max.X, &part.Max.Y} {
		if size := max(n[4+i], -n[4+i]); size > 0 {
			*side = n[2+i] + size
		}
	}
	if len(fields) == 6 {
		l.view.Part = part
	}
	return nil
}
