"""prototype"""
from __future__ import annotations
import math
from collections import Counter
import torch
from torch import Tensor
from secateur.compensation.calibration import original_moments
from secateur.compensation.removal_path import removal_path
from secateur.compensation.elimination import Summation
from secateur.compensation.ridge import fit
from secateur.compensation.targets import curvature
from secateur.compensation.linear_layers import layers_of, compensable
from secateur.planning.curves import Curve, allot

SHARES=(.2,.4,.6,.8,.9,.97)

def summation(compensator, layer, unit_set, moments, curved):
    w=layer.matrix(compensator.named[layer.weight]).double()
    blocks=moments.blocks
    ins=torch.arange(layer.inputs.size*layer.kernel)
    outs=torch.arange(layer.outputs.size)
    present,bias=compensator._present(layer,blocks,ins,outs)
    f=fit(moments,present,bias,compensator.settings.ridge,torch.ones(len(ins),dtype=torch.bool))
    if curved is None: root=torch.eye(f.weight.shape[2]).to(f.weight).expand(blocks,-1,-1)
    elif blocks>1: root=curved.diagonal().sqrt()[:,None,None]
    else:
        v,u=torch.linalg.eigh(curved); root=(u*v.clamp(min=0).sqrt())[None]
    return f, Summation(f.second,f.ridge,f.weight,root,layer.rows_of_units(unit_set))

def curves_of(compensator, gated, g, limits, shares=SHARES, verbose=False):
    import dataclasses, copy
    ones=compensator.ones
    units=compensator.units
    sets=[s for s in units if limits[s.name]>0]
    layers=[l for l in compensator.layers if any(l in layers_of(s,compensator.layers) for s in sets)]
    weighted=[l for l in compensator._weighted if l in layers]
    with torch.no_grad():
        moments=original_moments(gated,g,layers,weighted)
    curved=curvature(gated,layers,g) if compensator.settings.weighting=='ggn' else {}
    start=gated.loss(g)
    named=dict(compensator.named)|dict(gated.weights)
    comp=copy.copy(compensator); comp.named=named; comp.fitted={}
    numbers=units.split(torch.arange(units.total))
    out=[]
    from secateur.compensation.compensator import FittedLayer
    for s in sets:
        ls=layers_of(s,layers)
        nums=numbers[s.name]; left=(g[nums]!=0).nonzero()[:,0]
        pairs=[summation(comp,l,s,moments[l],curved.get(l)) for l in ls]
        pairs=[(f,x._replace(rows=x.rows[left])) for f,x in pairs]
        for l,(f,_) in zip(ls,pairs):
            comp.fitted[l]=FittedLayer(f,torch.arange(l.inputs.size*l.kernel),torch.arange(l.outputs.size))
        n=limits[s.name]
        points={max(1,min(n,round(share*len(left)))) for share in shares}
        order=[];pred=[0.];h=g.clone();meas={}
        for k,p in enumerate(removal_path([x for _,x in pairs],n,points),1):
            u=int(left[p.unit]); order.append(u);pred.append(pred[-1]+p.cost);h[nums[u]]=0
            if p.weights is not None:
                ch=dict(gated.weights)
                for l,(names,w) in zip(ls,p.weights): ch|=comp.tensors(l,w,names)
                meas[k]=gated.with_weights(ch).loss(h)-start
        out.append((s.name,order,pred,meas))
        if verbose: print(s.name,[(k,round(pred[k],5),round(m,5)) for k,m in meas.items()])
    return start,out

def rescale(order,pred,meas,span=1000.):
    """piecewise log-linear ratio"""
    ks=sorted(meas); ratios=[]
    for k in ks:
        r=meas[k]/pred[k] if pred[k]>0 else 1.
        ratios.append(min(span,max(r,1e-2)))
    rises=[0.]
    for n in range(1,len(pred)):
        if n<=ks[0]: q=ratios[0]
        elif n>=ks[-1]: q=ratios[-1]
        else:
            i=next(i for i in range(1,len(ks)) if ks[i]>=n)
            t=(n-ks[i-1])/(ks[i]-ks[i-1]); q=math.exp((1-t)*math.log(ratios[i-1])+t*math.log(ratios[i]))
        rises.append(max(rises[-1],q*pred[n]))
    return rises
