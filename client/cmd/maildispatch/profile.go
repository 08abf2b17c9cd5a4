package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/BurntSushi/toml"
)

// profile says how to reach one service.
type profile struct {
	Address   string `toml:"address"`
	TokenFile string `toml:"token_file"`
	CA        string `toml:"ca"`
	Cert      string `toml:"cert"`
	Key       string `toml:"key"`
	Plaintext bool   `toml:"plaintext"`
}

// profiles is the configuration file.
type profiles struct {
	Default string             `toml:"default"`
	Profile map[string]profile `toml:"profile"`
}

// profile reads the profile that was asked for and lays the flags over it.
func (a *app) profile() (*profile, error) {
	path := a.config
	if path == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			dir = ""
		}
		path = filepath.Join(dir, "maildispatch", "config.toml")
	}
	var all profiles
	meta, err := toml.DecodeFile(path, &all)
	switch {
	case errors.Is(err, fs.ErrNotExist) && a.config == "":
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	case len(meta.Undecoded()) > 0:
		return nil, fmt.Errorf("%s: %s is not known", path, meta.Undecoded()[0])
	}
	p, name := profile{}, a.name
	if name == "" {
		name = all.Default
	}
	if name != "" {
		known := false
		if p, known = all.Profile[name]; !known {
			return nil, fmt.Errorf("%s has no [profile.%s]", path, name)
		}
	}
	for _, x := range []struct{ into, from *string }{{&p.Address, &a.flags.Address}, {&p.TokenFile, &a.flags.TokenFile}, {&p.CA, &a.flags.CA}, {&p.Cert, &a.flags.Cert}, {&p.Key, &a.flags.Key}} {
		if *x.from != "" {
			*x.into = *x.from
		}
	}
	p.Plaintext = p.Plaintext || a.flags.Plaintext
	if p.Address == "" {
		p.Address = "127.0.0.1:50051"
	}
	if (p.Cert == "") != (p.Key == "") {
		return nil, errors.New("cert and key belong together")
	}
	return &p, nil
}
