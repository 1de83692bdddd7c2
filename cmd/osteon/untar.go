package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// untar writes the regular files of a tar stream into dir, which exists, and returns how many are
// whole. It makes no directories and follows no names out of dir; files are not overwritten.
func untar(r io.Reader, dir string) (files int, err error) {
	in := tar.NewReader(r)
	for {
		header, err := in.Next()
		switch {
		case errors.Is(err, io.EOF):
			return files, nil
		case err != nil:
			return files, err
		case header.Typeflag != tar.TypeReg || header.Name != filepath.Base(header.Name) || header.Name == "." || header.Name == "..":
			return files, fmt.Errorf("unexpected entry in the export")
		}
		if err := writeNew(filepath.Join(dir, header.Name), in); err != nil {
			return files, err
		}
		files++
	}
}

func writeNew(path string, content io.Reader) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			os.Remove(path)
		}
	}()
	_, err = io.Copy(f, content)
	return err
}
