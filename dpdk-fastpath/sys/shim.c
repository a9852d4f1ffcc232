/* The other side of shim.h: thin calls into DPDK, one burst at a time. */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_malloc.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_version.h>

#define SAME_FIELD(ours, theirs)                                                                    \
	_Static_assert(offsetof(struct cw_mbuf, ours) == offsetof(struct rte_mbuf, theirs) &&       \
			       sizeof(((struct cw_mbuf *)0)->ours) ==                               \
				       sizeof(((struct rte_mbuf *)0)->theirs),                      \
		       "struct cw_mbuf differs from DPDK's mbuf: " #theirs)
SAME_FIELD(buf_addr, buf_addr);
SAME_FIELD(data_off, data_off);
SAME_FIELD(refcnt, refcnt);
SAME_FIELD(nb_segs, nb_segs);
SAME_FIELD(port, port);
SAME_FIELD(ol_flags, ol_flags);
SAME_FIELD(packet_type, packet_type);
SAME_FIELD(pkt_len, pkt_len);
SAME_FIELD(data_len, data_len);
SAME_FIELD(vlan_tci, vlan_tci);
SAME_FIELD(rss, hash.rss);
SAME_FIELD(vlan_tci_outer, vlan_tci_outer);
SAME_FIELD(buf_len, buf_len);
SAME_FIELD(pool, pool);
_Static_assert(sizeof(struct cw_mbuf) == 64, "struct cw_mbuf is one cache line");
_Static_assert(offsetof(struct cw_mbuf, address_or_next) == 8, "a gap of struct cw_mbuf has moved");

#define SAME(ours, theirs) _Static_assert((ours) == (theirs), #ours " differs from " #theirs)
SAME(CW_SEEN_RSS_HASH, RTE_MBUF_F_RX_RSS_HASH);
SAME(CW_SEEN_L4_BAD, RTE_MBUF_F_RX_L4_CKSUM_BAD);
SAME(CW_SEEN_L4_GOOD, RTE_MBUF_F_RX_L4_CKSUM_GOOD);
SAME(CW_ASK_OUTER_UDP_CHECKSUM, RTE_MBUF_F_TX_OUTER_UDP_CKSUM);
SAME(CW_ASK_UDP_SEGMENTS, RTE_MBUF_F_TX_UDP_SEG);
SAME(CW_ASK_VXLAN, RTE_MBUF_F_TX_TUNNEL_VXLAN);
SAME(CW_ASK_TCP_SEGMENTS, RTE_MBUF_F_TX_TCP_SEG);
SAME(CW_ASK_TCP_CHECKSUM, RTE_MBUF_F_TX_TCP_CKSUM);
SAME(CW_ASK_SCTP_CHECKSUM, RTE_MBUF_F_TX_SCTP_CKSUM);
SAME(CW_ASK_UDP_CHECKSUM, RTE_MBUF_F_TX_UDP_CKSUM);
SAME(CW_ASK_L4_CHECKSUM, RTE_MBUF_F_TX_L4_MASK);
SAME(CW_ASK_IPV4_CHECKSUM, RTE_MBUF_F_TX_IP_CKSUM);
SAME(CW_ASK_IPV4, RTE_MBUF_F_TX_IPV4);
SAME(CW_ASK_IPV6, RTE_MBUF_F_TX_IPV6);
SAME(CW_ASK_OUTER_IPV4_CHECKSUM, RTE_MBUF_F_TX_OUTER_IP_CKSUM);
SAME(CW_ASK_OUTER_IPV4, RTE_MBUF_F_TX_OUTER_IPV4);
SAME(CW_ASK_OUTER_IPV6, RTE_MBUF_F_TX_OUTER_IPV6);
SAME(CW_RX_IPV4_CHECKSUM, RTE_ETH_RX_OFFLOAD_IPV4_CKSUM);
SAME(CW_RX_UDP_CHECKSUM, RTE_ETH_RX_OFFLOAD_UDP_CKSUM);
SAME(CW_RX_TCP_CHECKSUM, RTE_ETH_RX_OFFLOAD_TCP_CKSUM);
SAME(CW_RX_SCATTER, RTE_ETH_RX_OFFLOAD_SCATTER);
SAME(CW_RX_SCTP_CHECKSUM, RTE_ETH_RX_OFFLOAD_SCTP_CKSUM);
SAME(CW_RX_RSS_HASH, RTE_ETH_RX_OFFLOAD_RSS_HASH);
SAME(CW_TX_IPV4_CHECKSUM, RTE_ETH_TX_OFFLOAD_IPV4_CKSUM);
SAME(CW_TX_UDP_CHECKSUM, RTE_ETH_TX_OFFLOAD_UDP_CKSUM);
SAME(CW_TX_TCP_CHECKSUM, RTE_ETH_TX_OFFLOAD_TCP_CKSUM);
SAME(CW_TX_SCTP_CHECKSUM, RTE_ETH_TX_OFFLOAD_SCTP_CKSUM);
SAME(CW_TX_TCP_SEGMENTS, RTE_ETH_TX_OFFLOAD_TCP_TSO);
SAME(CW_TX_UDP_SEGMENTS, RTE_ETH_TX_OFFLOAD_UDP_TSO);
SAME(CW_TX_OUTER_IPV4_CHECKSUM, RTE_ETH_TX_OFFLOAD_OUTER_IPV4_CKSUM);
SAME(CW_TX_VXLAN_SEGMENTS, RTE_ETH_TX_OFFLOAD_VXLAN_TNL_TSO);
SAME(CW_TX_CHAINS, RTE_ETH_TX_OFFLOAD_MULTI_SEGS);
SAME(CW_TX_OUTER_UDP_CHECKSUM, RTE_ETH_TX_OFFLOAD_OUTER_UDP_CKSUM);
SAME(CW_HEADROOM, RTE_PKTMBUF_HEADROOM);

static struct rte_mbuf *theirs(struct cw_mbuf *mbuf) { return (struct rte_mbuf *)mbuf; }
static struct cw_mbuf *ours(struct rte_mbuf *mbuf) { return (struct cw_mbuf *)mbuf; }
static struct rte_mempool *mempool(const struct cw_pool *pool) { return (struct rte_mempool *)(uintptr_t)pool; }
static struct rte_ring *ring_of(struct cw_ring *ring) { return (struct rte_ring *)ring; }

/* DPDK says why in rte_errno, as an errno, or as -1 and nothing more. */
static int failure(int returned)
{
	if (returned < -1)
		return returned;
	return rte_errno > 0 ? -rte_errno : -EIO;
}

/* The environment. */

int cw_eal_init(int argc, char **argv)
{
	rte_errno = 0;
	return rte_eal_init(argc, argv) < 0 ? failure(-1) : 0;
}

int cw_eal_cleanup(void) { return rte_eal_cleanup(); }
const char *cw_version(void) { return rte_version(); }
const char *cw_error_text(int error) { return rte_strerror(error < 0 ? -error : error); }

static cw_log_sink log_sink;

static ssize_t log_write(void *cookie, const char *text, size_t len)
{
	(void)cookie;
	int level = rte_log_cur_msg_loglevel();
	log_sink(level > 0 ? (uint32_t)level : RTE_LOG_INFO, text, len);
	return (ssize_t)len;
}

int cw_log_to(cw_log_sink sink, uint32_t level)
{
	cookie_io_functions_t calls = {.write = log_write};
	log_sink = sink;
	/* Never closed: DPDK may log until the process ends. */
	FILE *stream = fopencookie(NULL, "w", calls);
	if (stream == NULL)
		return -errno;
	if (rte_openlog_stream(stream) != 0)
		return -EIO;
	rte_log_set_global_level(level);
	rte_log_set_level_pattern("*", level);
	return 0;
}

int cw_memory(struct cw_memory *out)
{
	memset(out, 0, sizeof(*out));
	for (unsigned int i = 0; i < rte_socket_count(); i++) {
		struct rte_malloc_socket_stats heap;
		if (rte_malloc_get_socket_stats(rte_socket_id_by_idx(i), &heap) != 0)
			return -EIO;
		out->total += heap.heap_totalsz_bytes;
		out->free += heap.heap_freesz_bytes;
		if (heap.greatest_free_size > out->largest_free)
			out->largest_free = heap.greatest_free_size;
	}
	return 0;
}

int cw_thread_register(void)
{
	if (rte_lcore_id() != LCORE_ID_ANY)
		return -EEXIST;
	rte_errno = 0;
	return rte_thread_register() != 0 ? failure(-1) : 0;
}

void cw_thread_unregister(void) { rte_thread_unregister(); }
uint64_t cw_tsc(void) { return rte_rdtsc(); }
uint64_t cw_tsc_hz(void) { return rte_get_tsc_hz(); }

/* Pools and frames. */

int cw_pool_create(const char *name, uint32_t frames, uint32_t cache, uint16_t room, struct cw_pool **out)
{
	rte_errno = 0;
	struct rte_mempool *pool = rte_pktmbuf_pool_create(name, frames, cache, 0, room, SOCKET_ID_ANY);
	*out = (struct cw_pool *)pool;
	return pool == NULL ? failure(-1) : 0;
}

void cw_pool_free(struct cw_pool *pool) { rte_mempool_free(mempool(pool)); }
uint32_t cw_pool_in_use(const struct cw_pool *pool) { return rte_mempool_in_use_count(mempool(pool)); }
uint32_t cw_pool_free_count(const struct cw_pool *pool) { return rte_mempool_avail_count(mempool(pool)); }

int cw_mbuf_alloc(struct cw_pool *pool, struct cw_mbuf **out, uint16_t n)
{
	return rte_pktmbuf_alloc_bulk(mempool(pool), (struct rte_mbuf **)out, n);
}

void cw_mbuf_free(struct cw_mbuf **mbufs, uint16_t n) { rte_pktmbuf_free_bulk((struct rte_mbuf **)mbufs, n); }

int cw_mbuf_chain(struct cw_mbuf *head, struct cw_mbuf *tail)
{
	return rte_pktmbuf_chain(theirs(head), theirs(tail));
}

struct cw_mbuf *cw_mbuf_next(const struct cw_mbuf *mbuf) { return ours(((const struct rte_mbuf *)mbuf)->next); }

struct cw_mbuf *cw_mbuf_split(struct cw_mbuf *head)
{
	struct rte_mbuf *first = theirs(head), *rest = first->next;
	if (rest == NULL)
		return NULL;
	rest->nb_segs = first->nb_segs - 1;
	rest->pkt_len = first->pkt_len - first->data_len;
	first->next = NULL;
	first->nb_segs = 1;
	first->pkt_len = first->data_len;
	return ours(rest);
}

void cw_mbuf_truncate(struct cw_mbuf *mbuf, uint32_t len)
{
	struct rte_mbuf *head = theirs(mbuf), *last = head, *rest;
	uint32_t left = len;
	uint16_t kept = 1;
	if (len >= head->pkt_len)
		return;
	for (; left > last->data_len; last = last->next, kept++)
		left -= last->data_len;
	last->data_len = (uint16_t)left;
	rest = last->next;
	last->next = NULL;
	head->nb_segs = kept;
	head->pkt_len = len;
	rte_pktmbuf_free(rest);
}

int cw_mbuf_linearise(struct cw_mbuf *mbuf) { return rte_pktmbuf_linearize(theirs(mbuf)) != 0 ? -ENOSPC : 0; }

void cw_mbuf_ask(struct cw_mbuf *mbuf, const struct cw_request *request)
{
	struct rte_mbuf *m = theirs(mbuf);
	m->ol_flags = (m->ol_flags & ~CW_ASK_ANY) | (request->flags & CW_ASK_ANY);
	m->tx_offload = 0;
	m->l2_len = request->l2_len;
	m->l3_len = request->l3_len;
	m->l4_len = request->l4_len;
	m->tso_segsz = request->segment;
	m->outer_l2_len = request->outer_l2_len;
	m->outer_l3_len = request->outer_l3_len;
}

void cw_mbuf_asked(const struct cw_mbuf *mbuf, struct cw_request *out)
{
	const struct rte_mbuf *m = (const struct rte_mbuf *)mbuf;
	*out = (struct cw_request){
		.flags = m->ol_flags & CW_ASK_ANY,
		.l2_len = m->l2_len,
		.l3_len = m->l3_len,
		.l4_len = m->l4_len,
		.segment = m->tso_segsz,
		.outer_l2_len = m->outer_l2_len,
		.outer_l3_len = m->outer_l3_len,
	};
}

/* Ports. */

int cw_port_by_name(const char *name, uint16_t *port) { return rte_eth_dev_get_port_by_name(name, port); }

int cw_port_attach(const char *devargs, uint16_t *port)
{
	char name[RTE_ETH_NAME_MAX_LEN];
	size_t len = strcspn(devargs, ",");
	if (len == 0 || len >= sizeof(name))
		return -EINVAL;
	memcpy(name, devargs, len);
	name[len] = '\0';
	if (rte_eth_dev_get_port_by_name(name, port) == 0)
		return -EEXIST;
	rte_errno = 0;
	int probed = rte_dev_probe(devargs);
	if (probed < 0)
		return failure(probed);
	if (rte_eth_dev_get_port_by_name(name, port) == 0)
		return 0;
	/* A device may name its ports otherwise; the first of them is meant. */
	struct rte_dev_iterator iterator;
	uint16_t id;
	RTE_ETH_FOREACH_MATCHING_DEV(id, name, &iterator)
	{
		rte_eth_iterator_cleanup(&iterator);
		*port = id;
		return 0;
	}
	return -ENODEV;
}

int cw_port_detach(uint16_t port)
{
	struct rte_eth_dev_info info;
	int err = rte_eth_dev_info_get(port, &info);
	if (err != 0)
		return err;
	err = rte_eth_dev_close(port);
	if (err != 0)
		return err;
	rte_errno = 0;
	err = info.device == NULL ? 0 : rte_dev_remove(info.device);
	return err < 0 ? failure(err) : 0;
}

int cw_port_info(uint16_t port, struct cw_port_info *out)
{
	struct rte_eth_dev_info info;
	struct rte_ether_addr mac = {0};
	memset(out, 0, sizeof(*out));
	int err = rte_eth_dev_info_get(port, &info);
	if (err == 0)
		err = rte_eth_macaddr_get(port, &mac);
	if (err == 0)
		err = rte_eth_dev_get_mtu(port, &out->mtu);
	if (err != 0)
		return err;
	snprintf(out->driver, sizeof(out->driver), "%s", info.driver_name ? info.driver_name : "");
	memcpy(out->mac, mac.addr_bytes, sizeof(out->mac));
	out->min_mtu = info.min_mtu;
	out->max_mtu = info.max_mtu;
	out->max_rx_queues = info.max_rx_queues;
	out->max_tx_queues = info.max_tx_queues;
	out->rx_offloads = info.rx_offload_capa;
	out->tx_offloads = info.tx_offload_capa;
	out->socket = rte_eth_dev_socket_id(port);
	return 0;
}

/* Several queues of a card need a hash to spread frames over them. */
static void spread(struct rte_eth_conf *conf, const struct rte_eth_dev_info *info, uint16_t queues)
{
	uint64_t hashes = info->flow_type_rss_offloads & (RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP);
	if (queues < 2 || hashes == 0)
		return;
	conf->rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
	conf->rx_adv_conf.rss_conf.rss_hf = hashes;
}

int cw_port_configure(uint16_t port, struct cw_port_setup *setup)
{
	struct rte_eth_dev_info info;
	struct rte_eth_conf conf = {0};
	int err = rte_eth_dev_info_get(port, &info);
	if (err != 0)
		return err;
	setup->rx_queues = RTE_MIN(setup->rx_queues, info.max_rx_queues);
	setup->tx_queues = RTE_MIN(setup->tx_queues, info.max_tx_queues);
	setup->rx_offloads &= info.rx_offload_capa;
	setup->tx_offloads &= info.tx_offload_capa;
	conf.rxmode.offloads = setup->rx_offloads;
	conf.txmode.offloads = setup->tx_offloads;
	conf.intr_conf.rxq = setup->interrupts != 0;
	spread(&conf, &info, setup->rx_queues);
	err = rte_eth_dev_configure(port, setup->rx_queues, setup->tx_queues, &conf);
	if (err == 0)
		err = rte_eth_dev_adjust_nb_rx_tx_desc(port, &setup->rx_ring, &setup->tx_ring);
	if (err == 0 && setup->mtu != 0)
		err = rte_eth_dev_set_mtu(port, setup->mtu);
	return err;
}

int cw_port_rx_queue(uint16_t port, uint16_t queue, uint16_t ring, struct cw_pool *pool)
{
	return rte_eth_rx_queue_setup(port, queue, ring, SOCKET_ID_ANY, NULL, mempool(pool));
}

int cw_port_tx_queue(uint16_t port, uint16_t queue, uint16_t ring)
{
	return rte_eth_tx_queue_setup(port, queue, ring, SOCKET_ID_ANY, NULL);
}

int cw_port_start(uint16_t port) { return rte_eth_dev_start(port); }
int cw_port_stop(uint16_t port) { return rte_eth_dev_stop(port); }

int cw_port_stats(uint16_t port, struct cw_port_stats *out)
{
	struct rte_eth_stats stats;
	int err = rte_eth_stats_get(port, &stats);
	if (err != 0)
		return err;
	*out = (struct cw_port_stats){
		.rx_frames = stats.ipackets,
		.rx_bytes = stats.ibytes,
		.rx_missed = stats.imissed,
		.rx_errors = stats.ierrors,
		.rx_no_buffer = stats.rx_nombuf,
		.tx_frames = stats.opackets,
		.tx_bytes = stats.obytes,
		.tx_errors = stats.oerrors,
	};
	return 0;
}

int cw_port_link(uint16_t port, struct cw_link *out)
{
	struct rte_eth_link link;
	int err = rte_eth_link_get_nowait(port, &link);
	if (err != 0)
		return err;
	*out = (struct cw_link){
		.mbps = link.link_speed,
		.up = link.link_status == RTE_ETH_LINK_UP,
		.full_duplex = link.link_duplex == RTE_ETH_LINK_FULL_DUPLEX,
	};
	return 0;
}

int cw_port_promiscuous(uint16_t port, int on)
{
	return on ? rte_eth_promiscuous_enable(port) : rte_eth_promiscuous_disable(port);
}

/* Queues. */

uint16_t cw_rx_burst(uint16_t port, uint16_t queue, struct cw_mbuf **out, uint16_t n)
{
	return rte_eth_rx_burst(port, queue, (struct rte_mbuf **)out, n);
}

uint16_t cw_tx_burst(uint16_t port, uint16_t queue, struct cw_mbuf **mbufs, uint16_t n)
{
	return rte_eth_tx_burst(port, queue, (struct rte_mbuf **)mbufs, n);
}

uint16_t cw_tx_prepare(uint16_t port, uint16_t queue, struct cw_mbuf **mbufs, uint16_t n, int *error)
{
	rte_errno = 0;
	uint16_t fit = rte_eth_tx_prepare(port, queue, (struct rte_mbuf **)mbufs, n);
	*error = fit < n ? failure(-1) : 0;
	return fit;
}

int cw_rx_descriptor(uint16_t port, uint16_t queue)
{
	int fd = rte_eth_dev_rx_intr_ctl_q_get_fd(port, queue);
	return fd >= 0 ? fd : -ENOTSUP;
}

int cw_rx_interrupt(uint16_t port, uint16_t queue, int on)
{
	return on ? rte_eth_dev_rx_intr_enable(port, queue) : rte_eth_dev_rx_intr_disable(port, queue);
}

/* Ports made of rings. */

int cw_ring_create(const char *name, uint32_t size, struct cw_ring **out)
{
	rte_errno = 0;
	struct rte_ring *ring = rte_ring_create(name, size, SOCKET_ID_ANY, RING_F_EXACT_SZ);
	*out = (struct cw_ring *)ring;
	return ring == NULL ? failure(-1) : 0;
}

void cw_ring_free(struct cw_ring *ring) { rte_ring_free(ring_of(ring)); }

uint16_t cw_ring_put(struct cw_ring *ring, struct cw_mbuf **mbufs, uint16_t n)
{
	return (uint16_t)rte_ring_enqueue_burst(ring_of(ring), (void *const *)mbufs, n, NULL);
}

uint16_t cw_ring_take(struct cw_ring *ring, struct cw_mbuf **out, uint16_t n)
{
	return (uint16_t)rte_ring_dequeue_burst(ring_of(ring), (void **)out, n, NULL);
}

int cw_ring_port(const char *name, struct cw_ring **rx, struct cw_ring **tx, uint16_t queues, uint16_t *port)
{
	rte_errno = 0;
	int id = rte_eth_from_rings(name, (struct rte_ring *const *)rx, queues, (struct rte_ring *const *)tx,
				    queues, 0);
	if (id < 0)
		return failure(id);
	*port = (uint16_t)id;
	return 0;
}
