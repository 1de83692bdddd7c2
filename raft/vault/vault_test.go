package vault

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"osteon/erasure/place"

	"github.com/cockroachdb/pebble/v2/vfs"
)

var update = flag.Bool("update", false, "rewrite golden files")

// counting is a source whose bytes are known.
type counting byte

func (c *counting) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(*c)
		*c++
	}
	return len(p), nil
}

var testRing = place.RingID{0xaa, 1, 2, 3}

// newConfig is a config over an empty in-memory file system.
func newConfig(t testing.TB, fs vfs.FS) Config {
	t.Helper()
	must(t, fs.MkdirAll("/etc", 0o755))
	source := new(counting)
	root, err := CreateRootKeyFile(fs, "/etc/root.key", source)
	must(t, err)
	return Config{FS: fs, Dir: "/data/vault", Ring: testRing, Root: root, Rand: source}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCreateOpenInstall(t *testing.T) {
	cfg := newConfig(t, vfs.NewMem())
	v, err := Create(cfg)
	must(t, err)
	key, wrapped, err := v.NewKey([]byte("study"))
	must(t, err)
	if len(wrapped) >= 128 {
		t.Errorf("wrapped key has %d bytes, want under 128", len(wrapped))
	}
	if _, err := Create(cfg); !errors.Is(err, ErrExists) {
		t.Errorf("second Create: %v, want ErrExists", err)
	}
	root, err := OpenRootKeyFile(cfg.FS, "/etc/root.key")
	must(t, err)
	cfg.Root = root
	again, err := Open(cfg)
	must(t, err)

	other := newConfig(t, vfs.NewMem())
	other.Rand = rand.Reader
	joined, err := Install(other, v.Bundle())
	must(t, err)
	for name, v := range map[string]*Vault{"reopened": again, "installed": joined} {
		got, err := v.Unwrap(wrapped, []byte("study"))
		if err != nil || got != key {
			t.Errorf("%s: Unwrap: %v, equal %v", name, err, got == key)
		}
		if v.MAC("l", []byte("a")) != again.MAC("l", []byte("a")) {
			t.Errorf("%s: MAC differs", name)
		}
	}
	if _, err := Install(other, v.Bundle()); !errors.Is(err, ErrExists) {
		t.Errorf("second Install: %v, want ErrExists", err)
	}
}

func TestRefusals(t *testing.T) {
	cfg := newConfig(t, vfs.NewMem())
	v, err := Create(cfg)
	must(t, err)

	missing := cfg
	missing.Dir = "/nowhere"
	if _, err := Open(missing); !errors.Is(err, ErrNotFound) {
		t.Errorf("Open without keys: %v, want ErrNotFound", err)
	}
	ring := cfg
	ring.Ring = place.RingID{9}
	if _, err := Open(ring); !errors.Is(err, ErrWrongRing) {
		t.Errorf("Open with another ring: %v, want ErrWrongRing", err)
	}
	ring.Dir = "/data/other"
	if _, err := Install(ring, v.Bundle()); !errors.Is(err, ErrWrongRing) {
		t.Errorf("Install with another ring: %v, want ErrWrongRing", err)
	}
	wrong := cfg
	wrong.Root, err = CreateRootKeyFile(cfg.FS, "/etc/other.key", rand.Reader)
	must(t, err)
	_, err = Open(wrong)
	if !errors.Is(err, ErrWrongRoot) {
		t.Errorf("Open with another root key: %v, want ErrWrongRoot", err)
	}
	if !strings.Contains(fmt.Sprint(err), "/etc/other.key") {
		t.Errorf("error does not name the key file: %v", err)
	}
	if _, err := OpenRootKeyFile(cfg.FS, "/etc/none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("OpenRootKeyFile: %v, want ErrNotFound", err)
	}
	if _, err := CreateRootKeyFile(cfg.FS, "/etc/root.key", rand.Reader); !errors.Is(err, ErrExists) {
		t.Errorf("CreateRootKeyFile: %v, want ErrExists", err)
	}
	if _, err := Open(Config{}); err == nil || !strings.Contains(err.Error(), "no ring") || !strings.Contains(err.Error(), "no root key") {
		t.Errorf("empty config: %v, want every fault", err)
	}
}

func TestWrap(t *testing.T) {
	v, err := Create(newConfig(t, vfs.NewMem()))
	must(t, err)
	key, wrapped, err := v.NewKey([]byte("a"))
	must(t, err)
	for i := range wrapped {
		for _, bit := range []byte{1, 0x80} {
			bad := bytes.Clone(wrapped)
			bad[i] ^= bit
			if got, err := v.Unwrap(bad, []byte("a")); err == nil || got == key {
				t.Fatalf("byte %d flipped: %v", i, err)
			} else if !errors.Is(err, ErrTampered) && !errors.Is(err, ErrUnknownEpoch) {
				t.Fatalf("byte %d flipped: unexpected error %v", i, err)
			}
		}
	}
	for n := range wrapped {
		if _, err := v.Unwrap(wrapped[:n], []byte("a")); !errors.Is(err, ErrTampered) {
			t.Fatalf("cut to %d: %v, want ErrTampered", n, err)
		}
	}
	if _, err := v.Unwrap(wrapped, []byte("b")); !errors.Is(err, ErrTampered) {
		t.Errorf("other aad: %v, want ErrTampered", err)
	}
	bad := bytes.Clone(wrapped)
	bad[4] = 7
	if _, err := v.Unwrap(bad, []byte("a")); !errors.Is(err, ErrUnknownEpoch) {
		t.Errorf("epoch 7: %v, want ErrUnknownEpoch", err)
	}
	if s := fmt.Sprintf("%v %s %#v %x", key, key, key, key); strings.Contains(s, hex.EncodeToString(key[:4])) {
		t.Errorf("a printed key shows its bytes: %s", s)
	}
}

func TestEpochs(t *testing.T) {
	cfg := newConfig(t, vfs.NewMem())
	old, err := Create(cfg)
	must(t, err)
	key, wrapped, err := old.NewKey(nil)
	must(t, err)
	ring := old.keys
	ring.epochs = append(ring.epochs[:1:1], epoch{number: 5, kek: Key{5}})
	cfg.Dir = "/data/two"
	v, err := Install(cfg, encodeBundle(ring))
	must(t, err)
	if got, err := v.Unwrap(wrapped, nil); err != nil || got != key {
		t.Errorf("key of epoch 1: %v", err)
	}
	w, err := v.Wrap(key, nil)
	must(t, err)
	if n, _ := w.Epoch(); n != 5 || v.Epoch() != 5 {
		t.Errorf("wrapped in epoch %d, want 5", n)
	}
	if _, err := old.Unwrap(w, nil); !errors.Is(err, ErrUnknownEpoch) {
		t.Errorf("key of epoch 5 without it: %v, want ErrUnknownEpoch", err)
	}
}

func TestMACParts(t *testing.T) {
	v, err := Create(newConfig(t, vfs.NewMem()))
	must(t, err)
	seen := map[[32]byte]string{}
	for _, c := range [][]string{{"l"}, {"l", ""}, {"l", "ab"}, {"l", "a", "b"}, {"l", "", "ab"}, {"l", "ab", ""}, {"la", "b"}} {
		var parts [][]byte
		for _, p := range c[1:] {
			parts = append(parts, []byte(p))
		}
		sum := v.MAC(c[0], parts...)
		if before, ok := seen[sum]; ok {
			t.Errorf("%q and %s have the same MAC", c, before)
		}
		seen[sum] = fmt.Sprintf("%q", c)
	}
}

func TestConcurrentUse(t *testing.T) {
	v, err := Create(newConfig(t, vfs.NewMem()))
	must(t, err)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				k, w, err := v.NewKey([]byte("x"))
				if err != nil {
					t.Error(err)
				}
				if got, err := v.Unwrap(w, []byte("x")); err != nil || got != k {
					t.Error("unwrap", err)
				}
				v.MAC("l", w)
			}
		})
	}
	wg.Wait()
}

// TestGolden opens files of format version 1 that were written once and stay for ever.
func TestGolden(t *testing.T) {
	fs := vfs.NewMem()
	cfg := newConfig(t, fs)
	v, err := Create(cfg)
	must(t, err)
	f, err := v.FS().Create("/data/file", "")
	must(t, err)
	_, err = f.Write([]byte("the body of an encrypted file"))
	must(t, errors.Join(err, f.Close()))
	for path, name := range map[string]string{"/etc/root.key": "root.v1", "/data/vault/keys": "keys.v1", "/data/file": "file.v1"} {
		got := readRaw(t, fs, path)
		golden := filepath.Join("testdata", name)
		if *update {
			must(t, os.WriteFile(golden, got, 0o644))
		}
		want, err := os.ReadFile(golden)
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from %s", path, golden)
		}
		writeRaw(t, fs, path, want)
	}
	root, err := OpenRootKeyFile(fs, "/etc/root.key")
	must(t, err)
	cfg.Root = root
	v, err = Open(cfg)
	must(t, err)
	if got := readThrough(t, v.FS(), "/data/file"); string(got) != "the body of an encrypted file" {
		t.Errorf("golden file holds %q", got)
	}
}

// TestFlips refuses keys files and root key files with any byte changed or missing.
func TestFlips(t *testing.T) {
	fs := vfs.NewMem()
	cfg := newConfig(t, fs)
	_, err := Create(cfg)
	must(t, err)
	for path, open := range map[string]func() error{
		"/data/vault/keys": func() error { _, err := Open(cfg); return err },
		"/etc/root.key":    func() error { _, err := OpenRootKeyFile(fs, "/etc/root.key"); return err },
	} {
		good := readRaw(t, fs, path)
		for i := range good {
			for _, bit := range []byte{1, 0x10, 0x80} {
				bad := bytes.Clone(good)
				bad[i] ^= bit
				writeRaw(t, fs, path, bad)
				if err := open(); !errors.Is(err, ErrTampered) {
					t.Fatalf("%s byte %d flipped: %v, want ErrTampered", path, i, err)
				}
			}
			writeRaw(t, fs, path, good[:i])
			if err := open(); !errors.Is(err, ErrTampered) {
				t.Fatalf("%s cut to %d: %v, want ErrTampered", path, i, err)
			}
		}
		writeRaw(t, fs, path, append(bytes.Clone(good), 0))
		if err := open(); !errors.Is(err, ErrTampered) {
			t.Fatalf("%s with a byte more: %v, want ErrTampered", path, err)
		}
		writeRaw(t, fs, path, good)
		must(t, open())
	}
}

// TestForgedKeys repairs the checksum after each flip, so that only the root key's seal stands.
func TestForgedKeys(t *testing.T) {
	cfg := newConfig(t, vfs.NewMem())
	_, err := Create(cfg)
	must(t, err)
	good := readRaw(t, cfg.FS, "/data/vault/keys")
	for i := range len(good) - checksumBytes {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		bad = appendChecksum(bad[:len(bad)-checksumBytes])
		if _, err := decodeKeysFile(cfg.Root, testRing, bad); err == nil {
			t.Fatalf("byte %d flipped and the checksum repaired: no error", i)
		}
	}
}

func TestCreateCrash(t *testing.T) {
	fs := vfs.NewCrashableMem()
	cfg := newConfig(t, fs)
	v, err := Create(cfg)
	must(t, err)
	crashed := fs.CrashClone(vfs.CrashCloneCfg{})
	cfg.FS = crashed
	cfg.Root, err = OpenRootKeyFile(crashed, "/etc/root.key")
	if err != nil { // /etc itself was never synced by this test
		t.Logf("root key: %v", err)
		cfg.Root, err = OpenRootKeyFile(fs, "/etc/root.key")
		must(t, err)
	}
	again, err := Open(cfg)
	must(t, err)
	if again.MAC("x") != v.MAC("x") {
		t.Error("other keys after the crash")
	}
}

func TestRealFiles(t *testing.T) {
	dir := t.TempDir()
	root, err := CreateRootKeyFile(vfs.Default, filepath.Join(dir, "root.key"), rand.Reader)
	must(t, err)
	cfg := Config{FS: vfs.Default, Dir: filepath.Join(dir, "a", "b"), Ring: testRing, Root: root, Rand: rand.Reader}
	_, err = Create(cfg)
	must(t, err)
	for _, name := range []string{"root.key", "a/b/keys"} {
		info, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o, want 600", name, info.Mode().Perm())
		}
	}
	_, err = Open(cfg)
	must(t, err)
	left, err := os.ReadDir(filepath.Join(dir, "a", "b"))
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func FuzzKeysFile(f *testing.F) {
	cfg := newConfig(f, vfs.NewMem())
	v, err := Create(cfg)
	must(f, err)
	f.Add(readRaw(f, cfg.FS, "/data/vault/keys"))
	f.Add([]byte(keysMagic))
	f.Add(v.Bundle())
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeKeysFile(cfg.Root, testRing, b); err == nil && r.mac != v.keys.mac {
			t.Fatal("a keys file that nobody sealed was opened")
		}
		fixed := appendChecksum(bytes.Clone(b))
		if r, err := decodeKeysFile(cfg.Root, testRing, fixed); err == nil && r.mac != v.keys.mac {
			t.Fatal("a keys file that nobody sealed was opened")
		}
		if r, err := decodeBundle(fixed); err == nil && !bytes.Equal(encodeBundle(r), fixed) {
			t.Fatal("bundle does not survive a round trip")
		}
	})
}

func readRaw(t testing.TB, fs vfs.FS, path string) []byte {
	t.Helper()
	b, err := readFile(fs, path, 1<<30)
	must(t, err)
	return b
}

func writeRaw(t testing.TB, fs vfs.FS, path string, b []byte) {
	t.Helper()
	must(t, fs.Remove(path))
	must(t, writeSynced(fs, path, bytes.Clone(b)))
}

func readThrough(t testing.TB, fs vfs.FS, path string) []byte { return readRaw(t, fs, path) }
