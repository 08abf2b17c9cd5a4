package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// kernel sets kernel settings (key=value, separated by blanks) and returns what sets them back.
// Nothing stays set after an error.
func kernel(settings string) (restore func() error, err error) {
	var undo []func() error
	restore = func() error {
		var err error
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
		undo = nil
		return err
	}
	for kv := range strings.FieldsSeq(settings) {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || strings.ContainsAny(k, "/") {
			return nil, errors.Join(fmt.Errorf("kernel: %q is not key=value", kv), restore())
		}
		path := procSys(k)
		was, err := os.ReadFile(path)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("kernel: %w", err), restore())
		}
		back := func() error { return writeSys(path, string(was)) }
		// vm.dirty_…_bytes is 0 while vm.dirty_…_ratio counts, and the other way round: only
		// the one that counts can be set back.
		if twin := twinOf(k); twin != "" && strings.TrimSpace(string(was)) == "0" {
			if was, err := os.ReadFile(procSys(twin)); err == nil {
				back = func() error { return writeSys(procSys(twin), string(was)) }
			}
		}
		if err := writeSys(path, v); err != nil {
			return nil, errors.Join(err, restore())
		}
		undo = append(undo, back)
	}
	return restore, nil
}

// twinOf is the other way to say what k says, "" where there is none.
func twinOf(k string) string {
	if name, ok := strings.CutSuffix(k, "_bytes"); ok {
		return name + "_ratio"
	}
	if name, ok := strings.CutSuffix(k, "_ratio"); ok {
		return name + "_bytes"
	}
	return ""
}

func procSys(key string) string { return "/proc/sys/" + strings.ReplaceAll(key, ".", "/") }

func writeSys(path, v string) error {
	if err := os.WriteFile(path, []byte(v), 0); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	return nil
}
