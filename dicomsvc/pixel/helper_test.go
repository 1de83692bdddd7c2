package pixel

import (
	"bytes"
	"compress/flate"
	"io"
)

func inflated(b []byte) []byte {
	plain, _ := io.ReadAll(flate.NewReader(bytes.NewReader(b)))
	return plain
}
