package node

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metricsHandler serves the node's metrics from a registry of its own: two nodes can live in one process.
// Nothing in it names a patient, a study or an instance.
func (n *Node) metricsHandler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	counter := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value))
	}
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	s := n.archive.Stats()
	counter("osteon_archive_stored_instances_total", "Instances acknowledged.", func() float64 { return float64(s.Stored.Load()) })
	counter("osteon_archive_identical_instances_total", "Instances received again with the same bytes.", func() float64 { return float64(s.Identical.Load()) })
	counter("osteon_archive_further_versions_total", "Instances kept as further versions.", func() float64 { return float64(s.Further.Load()) })
	counter("osteon_archive_refused_instances_total", "Instances refused.", func() float64 { return float64(s.Refused.Load()) })
	counter("osteon_archive_stored_bytes_total", "Bytes acknowledged.", func() float64 { return float64(s.StoredBytes.Load()) })
	counter("osteon_archive_examined_rows_total", "Rows of the catalog that queries read.", func() float64 { return float64(s.Examined.Load()) })
	counter("osteon_archive_matched_records_total", "Records that queries found.", func() float64 { return float64(s.Matched.Load()) })
	counter("osteon_archive_sealed_packs_total", "Packs sealed by this node.", func() float64 { return float64(s.Sealed.Load()) })
	counter("osteon_archive_sealed_bytes_total", "Bytes sealed by this node.", func() float64 { return float64(s.SealedBytes.Load()) })
	counter("osteon_archive_failed_seals_total", "Sealing attempts that failed.", func() float64 { return float64(s.SealFailed.Load()) })
	counter("osteon_archive_bad_shards_total", "Shards found missing, corrupt or out of reach while reading.", func() float64 { return float64(s.BadShards.Load()) })
	n.servers.count(counter, gauge)
	gauge("osteon_archive_waiting_instances", "Instances held here that the catalog has not applied.", func() float64 { return float64(n.archive.Waiting()) })
	gauge("osteon_archive_unsealed_bytes", "Bytes in the catalog that wait to be sealed, in the whole ring.", n.unsealedBytes)
	gauge("osteon_catalog_applied_index", "Last Raft index that the catalog applied.", func() float64 { return float64(n.cat.Applied()) })
	gauge("osteon_ring_commit_index", "Last Raft index known to be committed.", func() float64 { return float64(n.ring.CommitIndex()) })
	gauge("osteon_ring_term", "Raft's term as this node knows it: it grows with every election.", func() float64 { return float64(n.ring.Term()) })
	gauge("osteon_ring_leader", "1 at the leader.", func() float64 { return flag(n.ring.IsLeader()) })
	gauge("osteon_node_ready", "1 when the node is ready.", func() float64 { return flag(n.Ready() == nil) })
	gauge("osteon_node_free_bytes", "Free space of the node's file system.", func() float64 { return float64(n.freeBytes()) })
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}

// unsealedBytes is what the studies with journalled versions have of these, -1 when the catalog cannot say.
func (n *Node) unsealedBytes() float64 {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	due, err := n.archive.Unsealed(ctx)
	if err != nil {
		return -1
	}
	var total int64
	for _, d := range due {
		total += d.UnsealedBytes
	}
	return float64(total)
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// count adds what the front doors did.
func (s *listeners) count(counter, gauge func(name, help string, value func() float64)) {
	if s.scp != nil {
		d := s.scp.Stats()
		counter("osteon_dimse_connections_total", "Connections accepted on the DIMSE listener.", func() float64 { return float64(d.Connections.Load()) })
		counter("osteon_dimse_accepted_associations_total", "Associations accepted.", func() float64 { return float64(d.Accepted.Load()) })
		counter("osteon_dimse_rejected_associations_total", "Associations rejected by decision.", func() float64 { return float64(d.Rejected.Load()) })
		counter("osteon_dimse_limited_associations_total", "Associations rejected by a limit.", func() float64 { return float64(d.Limited.Load()) })
		counter("osteon_dimse_broken_associations_total", "Associations that did not end with a release.", func() float64 { return float64(d.Broken.Load()) })
		counter("osteon_dimse_held_back_connections_total", "Connections closed at once because too many from their address came to nothing.", func() float64 { return float64(d.HeldBack.Load()) })
		counter("osteon_dimse_evicted_connections_total", "Connections closed because they sent no request while others waited.", func() float64 { return float64(d.Evicted.Load()) })
		counter("osteon_dimse_panics_total", "Faults of this program that cost an association.", func() float64 { return float64(d.Panics.Load()) })
		gauge("osteon_dimse_open_associations", "Associations open now.", func() float64 { return float64(d.Open.Load()) })
	}
	if s.dicomweb != nil {
		counter("osteon_http_panics_total", "Faults of this program that cost a request.", func() float64 { return float64(s.dicomweb.Panics()) })
	}
}
