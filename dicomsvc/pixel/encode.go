package pixel

import (
	"fmt"
	"image"
	"image/color"
	web "image/color/palette"
	"image/draw"
	"image/gif"
	stdjpeg "image/jpeg"
	"image/png"
	"io"
)

// QualityDefault is the quality of JPEG images when none is asked for, of 100.
const QualityDefault = 90

// WriteJPEG writes a rendered image as baseline JPEG with a quality from 1 to 100.
func WriteJPEG(w io.Writer, m image.Image, quality int) error {
	if quality == 0 {
		quality = QualityDefault
	}
	return stdjpeg.Encode(w, m, &stdjpeg.Options{Quality: min(max(quality, 1), 100)})
}

// WritePNG writes a rendered image without loss.
func WritePNG(w io.Writer, m image.Image) error {
	return (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(w, m)
}

// Animation collects frames for an animated GIF.
type Animation struct {
	// Delay is the time that a frame is shown, in hundredths of a second.
	Delay int

	out gif.GIF
}

// Add appends a frame: gray ones keep their 256 values, those in colour are brought to the 216 colours of the web.
func (a *Animation) Add(m image.Image) {
	b := m.Bounds()
	var frame *image.Paletted
	if gray, ok := m.(*image.Gray); ok {
		frame = &image.Paletted{Pix: gray.Pix, Stride: gray.Stride, Rect: b, Palette: grays}
	} else {
		frame = image.NewPaletted(b, web.WebSafe)
		draw.FloydSteinberg.Draw(frame, b, m, b.Min)
	}
	a.out.Image = append(a.out.Image, frame)
	a.out.Delay = append(a.out.Delay, a.Delay)
}

// Write writes the frames; a single one is not animated.
func (a *Animation) Write(w io.Writer) error {
	if len(a.out.Image) == 0 {
		return fmt.Errorf("%w: no frame to write", ErrNoImage)
	}
	return gif.EncodeAll(w, &a.out)
}

var grays = func() color.Palette {
	p := make(color.Palette, 256)
	for i := range p {
		p[i] = color.Gray{Y: uint8(i)}
	}
	return p
}()
