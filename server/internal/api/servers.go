package api

import (
	"sync"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store"
)

// servers remembers mail servers that senders have named, so that not every mail asks the
// database. What is remembered may be out of date: a mail is stored only if its mail server
// still has the version it was routed with (store.ErrServerChanged), else it is routed again.
type servers struct {
	mu     sync.Mutex
	byName map[string]*store.MailServer
}

const mostServers = 1000

func newServers() *servers { return &servers{byName: map[string]*store.MailServer{}} }

// get is the mail server that o names if its team may use it, nil when it has to be asked for.
func (s *servers) get(o *pb.SendOptions) *store.MailServer {
	if o.GetMailServer() == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.byName[o.GetMailServer()]; m != nil && (m.Team == "" || m.Team == o.GetTeam()) {
		return m
	}
	return nil
}

// put remembers a mail server that can be used.
func (s *servers) put(m *store.MailServer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.byName) >= mostServers {
		clear(s.byName)
	}
	s.byName[m.Name] = m
}

func (s *servers) drop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byName, name)
}
